_base_ = [
    '../models/dit.py',
    '../datasets/imagenet_latents.py',
    '../schedules/adamw-ema_400k.py',
    '../runtime_diffusion.py',
]
