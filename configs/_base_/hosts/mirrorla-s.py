# norm_eval as in the host's own code: with few images per device the statistics of ImageNet are
# better. Without ImageNet weights set it to False.
host = dict(type='mirrorla_mm.MirrorLA', arch='s', norm_eval=True)
channels = [64, 128, 320, 512]
