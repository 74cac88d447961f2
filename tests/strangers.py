"""Files from strangers: objects that act when they are unpickled, and random damage."""

from __future__ import annotations

import random

# What :func:`noted` was called with.
CALLS: list[tuple] = []
DAMAGES = ('cut', 'flip', 'overwrite', 'insert', 'noise')


def noted(*args) -> None:
    """The function that a hostile file would call in this process."""
    CALLS.append(args)


class Call:
    """Pickles as the call of a function, as every exploit does."""

    def __init__(self, function, *args) -> None:
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def damaged(content: bytes, kind: str, seed: int) -> bytes:
    """A file's content after damage of one of :data:`DAMAGES`."""
    chance = random.Random(seed)
    data = bytearray(content)
    if kind == 'cut':
        return bytes(data[: chance.randrange(len(data))])
    if kind == 'flip':
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    if kind == 'overwrite':
        start = chance.randrange(len(data))
        noise = chance.randbytes(chance.randint(1, 64))
        data[start : start + len(noise)] = noise
    if kind == 'insert':
        start = chance.randrange(len(data))
        data[start:start] = chance.randbytes(chance.randint(1, 64))
    if kind == 'noise':
        return chance.randbytes(chance.randint(0, 500))
    return bytes(data)
