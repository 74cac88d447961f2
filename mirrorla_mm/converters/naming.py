"""Names of entries: whose file they show it to be, how many blocks, and what we call them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from .converted import ConversionError

MOST_BLOCKS = 200  # The deepest published pyramids have 55; a block costs milliseconds to build.


class Family(NamedTuple):
    """Files of one kind.

    Attributes:
        name: Of the model.
        advice: What to do with its files.
        entry: Pattern of entries that no family further down the list has.
    """

    name: str
    advice: str
    entry: str


def _tool(name: str) -> str:
    return f'convert it with tools/model_converters/{name}.py'


RAVLT = Family('RAVLT', _tool('ravlt'), r'\.attn\.qkvo\.')
NALAFORMER = Family('NaLaFormer', _tool('nalaformer'), r'\.cpe[12]\.')
AGENT = Family('Agent Attention', 'no converter here reads it', r'\.attn\.[anhw]{2}_bias$')
INLINE = Family('InLine', 'no converter here reads it', r'\.attn\.residual\.\d\.')
SWIN_PVT = Family('FLatten or PolaFormer', _tool('swin_pvt'), r'\.attn\.positional_encoding$')
TRAINED = Family(
    'an OpenMMLab training',
    _tool('backbone'),
    r'^backbone\.(stem|downsamples|stages|layers\.\d)\.[\d.]+',
)
SWIN = Family(
    'Swin with softmax attention',
    'mirrorla_mm.LinearSwin reads it as it is, with convert_weights=True',
    r'^layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table$',
)
DCTLSA = Family('DCTLSA', _tool('dctlsa'), r'^B\d+\.body\.\d+\.transformer_body\.')
FAMILIES = (RAVLT, NALAFORMER, AGENT, INLINE, SWIN_PVT, TRAINED, SWIN, DCTLSA)


def require_family(state_dict: dict[str, Tensor], family: Family) -> None:
    """Refuse a file that is known to be of another family.

    Raises:
        ConversionError: If it is; the message names the family and what to do.
    """
    for other in FAMILIES:
        if any(re.search(other.entry, key) for key in state_dict):
            if other is not family:
                raise ConversionError(f'This is a file of {other.name}: {other.advice}.')
            return


def rename_keys(
    state_dict: dict[str, Tensor],
    renames: Iterable[tuple[str, str]],
    computed: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Rename entries by regular expressions, all of them in order, and leave out computed ones.

    Args:
        state_dict (dict): The file's.
        renames (Iterable[tuple[str, str]]): Pattern and replacement, as for :func:`re.sub`.
        computed (Sequence[str]): Patterns of entries that the model computes itself.

    Returns:
        dict: Under the model's names.

    Raises:
        ConversionError: If two entries get the same name.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if any(re.search(pattern, key) for pattern in computed):
            continue
        name = key
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise ConversionError(f"'{key}' is the second entry for '{name}' in this file.")
        renamed[name] = value
    return renamed


def block_counts(
    state_dict: dict[str, Tensor], pattern: str, kind: str, first: int = 0
) -> tuple[int, ...]:
    """Count the blocks of each stage.

    Args:
        state_dict (dict): The file's.
        pattern (str): What a block's entries begin with, with groups for stage and block.
        kind (str): Of models, for the message.
        first (int): Number of the first stage; blocks count from 0.

    Raises:
        ConversionError: If there are no blocks, numbers are left out, or there are more blocks
            than any model has.
    """
    matches = (re.match(pattern, key) for key in state_dict)
    blocks = {tuple(map(int, match.groups())) for match in matches if match}
    if len(blocks) > MOST_BLOCKS:
        raise ConversionError(f'This is no official {kind} file: it has {len(blocks)} blocks.')
    stages = sorted({stage for stage, _ in blocks})
    counts = tuple(sum(stage == s for s, _ in blocks) for stage in stages)
    if not blocks or blocks != {(first + s, b) for s, n in enumerate(counts) for b in range(n)}:
        raise ConversionError(
            f'This is no official {kind} file: its blocks are not numbered one after the other.'
        )
    return counts


def required(official: dict[str, Tensor], key: str, kind: str) -> Tensor:
    """An entry that a file of this kind has.

    Raises:
        ConversionError: If it does not.
    """
    if key not in official:
        raise ConversionError(f"This is no official {kind} file: '{key}' is missing.")
    return official[key]
