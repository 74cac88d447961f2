_base_ = 'no_decay.py'

# Norms of RAVLT and MirrorLA by name: the longest part of a parameter's name that is listed decides
# alone, and norm_decay_mult is not asked.
backbone_norms = (
    'backbone.norms.',
    *(f'.norm{i}.{part}' for i in (1, 2) for part in ('weight', 'bias')),
    *(f'backbone.stem.{i}.' for i in (1, 4, 7, 10)),
    *(f'backbone.downsamples.{i}.1.' for i in (0, 1, 2)),
)
# The backbone learns at a tenth of the rate, these parts of it without decay.
slow_backbone = {
    key: dict(lr_mult=0.1, decay_mult=0.0) for key in (*_base_.no_decay, *backbone_norms)
}
