_base_ = [
    '../models/dit.py',
    '../datasets/imagenet_latents.py',
    '../schedules/adamw-ema_400k.py',
    '../runtime_diffusion.py',
]

# The linear path; 250 steps of the SDE.
model = dict(process=dict(_delete_=True, type='mirrorla_mm.Interpolant'))
