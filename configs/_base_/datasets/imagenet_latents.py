# Latents of 256x256 pixels, as tools/encode_latents.py writes them: a folder for each class.
data_root = 'data/imagenet_latents/'
train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='mirrorla_mm.ClassFolders',
        data_root=data_root + 'train',
        pipeline=[
            dict(type='mirrorla_mm.LoadLatent'),
            dict(type='mirrorla_mm.PackDiffusionInputs'),
        ],
    ),
)
