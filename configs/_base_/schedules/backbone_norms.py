# Norms of RAVLT and MirrorLA by name, for protocols that give the backbone a rate of its own: the
# longest part of a parameter's name that is listed decides alone, and norm_decay_mult is not asked.
backbone_norms = (
    'backbone.norms.',
    *(f'.norm{i}.{part}' for i in (1, 2) for part in ('weight', 'bias')),
    *(f'backbone.stem.{i}.' for i in (1, 4, 7, 10)),
    *(f'backbone.downsamples.{i}.1.' for i in (0, 1, 2)),
)
