# Parameters without weight decay. It would pull the reflections' angles to 0, which is an
# angle like any other, and shrink vectors of which only the direction counts. Learned tables of
# positions are exempt as Swin's authors exempt theirs; '.0.pos_embed' is PVT's alone.
no_decay = {
    key: dict(decay_mult=0.0)
    for key in (
        'reflection',
        '.position',
        '.query_bias',
        '.key_bias',
        '.0.pos_embed',
        '.relative_position_bias_table',
    )
}
