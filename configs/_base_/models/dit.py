model = dict(
    type='mirrorla_mm.DiffusionModel',
    backbone=dict(type='mirrorla_mm.DiT', arch='s', patch_size=2, input_size=32),
    process=dict(type='mirrorla_mm.DDPM'),
    # Latents of Stable Diffusion's VAE times 0.18215.
    data_preprocessor=dict(type='ImgDataPreprocessor', mean=[0.0], std=[1 / 0.18215]),
)
