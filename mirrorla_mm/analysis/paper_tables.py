"""The paper's tables beside what the configs give."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import mmengine.config.config as config_module
import mmengine.config.utils as config_utils
from mmengine.config import Config
from torch import nn

from ..registry import MODELS
from . import table_4
from .flops import (
    Complexity,
    config_complexity,
    empty_parameters,
    model_complexity,
    total_complexity,
)
from .paper_data import TABLES, Cause, Row, Table

TOLERANCE = 0.01
COUNTERS = {'layers': 'convolution + linear', 'total': 'every product'}
OURS = re.compile(r'(^|_)(mirrorla|ravlt)-')


HEADER = """\
# The paper's tables beside what the configs here give

Made by `python tools/analysis_tools/paper_tables.py`; a test fails when this page is stale. P and
F are ours / the paper's; each is *reproduced* (with the deviation) or a *misprint*, or it *differs*
for a cause that stands below the table, with what the config gives when it is counted that way. All
else *needs training*, with the command that follows each table; no weights of MirrorLA are public,
so none of it is reproduced here.

- **F** is in billions of multiply-accumulates. The paper's Tables 1 and 6 count every product. Its
  dense-prediction tables count MirrorLA's convolutions and linear layers alone, while they quote
  Swin, PVTv2 and SegFormer with their attention's products: two conventions in one table. The two
  columns after F count every product of both layouts, so that like can be compared with like.
- **Layouts**: each row of MirrorLA has a second config, `mirrorla-X-linear`, linear in all stages.
- **Rounding**: the paper rounds most parameters to millions and cuts others (24.60 to 24, 33.50 to
  33), so that a deviation below one million counts as reproduced; FLOPs within 1 % or half of the
  last digit.

Every dense model starts from ImageNet weights: those of the ImageNet row of the same backbone, or
published ones that `tools/model_converters` reads (RAVLT's, and those of FLatten and PolaFormer in
Swin and PVT). Before the commands:

```shell
INIT="--cfg-options model.backbone.init_cfg.type=Pretrained
  model.backbone.init_cfg.checkpoint=IMAGENET_CHECKPOINT.pth
  model.backbone.init_cfg.prefix=backbone."
```

Each is then evaluated by `tools/dist_test.sh CONFIG CHECKPOINT GPUS`.
"""


@dataclass(frozen=True)
class Cell:
    """A number of the paper beside ours.

    Attributes:
        paper (float): As printed.
        ours (float): In the unit of the paper.
        status (str): ``'reproduced'``, ``'misprint'`` or ``'differs'``.
        note (str): The counter that gives it, or why it is a misprint.
        cause (Cause, optional): Why it differs.
        recount (float, optional): Ours, if counted as the cause says.
    """

    paper: float
    ours: float
    status: str
    note: str = ''
    cause: Cause | None = None
    recount: float | None = None

    @property
    def deviation(self) -> float:
        """Ours over the paper's, less 1."""
        return self.ours / self.paper - 1


@dataclass(frozen=True)
class Result:
    """A row, counted in both layouts; the second is None for models that have one alone."""

    row: Row
    params: Cell
    flops: Cell
    hybrid: Complexity
    linear: Complexity | None


def needs_training(table: Table) -> bool:
    """Whether nothing in the table can be counted."""
    return all(row.params is None for row in table.rows)


def count_row(row: Row, table: Table, configs: Path) -> Result:
    """Count a row's config, and its linear layout where it has one."""
    hybrid = complexity(configs / row.config, table.shape)
    linear = (
        complexity(configs / row.config, table.shape, layout='linear') if is_ours(row) else None
    )
    params = _cell(row, 'params', dict(params=hybrid.params / 1e6), cut=1)
    # Rows quoted from other papers may have been counted in either way.
    counters = [table.counter] if is_ours(row) else list(COUNTERS)
    flops = _cell(row, 'flops', {name: getattr(hybrid, name) / 1e9 for name in counters})
    if flops.cause and flops.cause.countable:
        cause = flops.cause
        again = complexity(configs / row.config, cause.shape or table.shape, options=cause.options)
        flops = replace(flops, recount=again.total * cause.times / 1e9)
    return Result(row, params, flops, hybrid, linear)


def is_ours(row: Row) -> bool:
    """Whether the row is MirrorLA's or its host's."""
    return OURS.search(Path(row.config).name) is not None


def is_countable(row: Row) -> bool:
    """Whether the config can be built without mmpretrain."""
    return row.params is not None and not any(name in row.config for name in ('van-', 'xcit-'))


def complexity(
    config: Path,
    shape: tuple[int, int],
    layout: str | None = None,
    options: dict | None = None,
) -> Complexity:
    """Of the whole model; an ImageNet model is built without mmpretrain, and takes no options."""
    if config.parent.name == 'imagenet':
        return classifier_complexity(config, layout)
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(options or {})
    if layout:
        cfg.model.backbone.layout = layout
    return total_complexity(config_complexity(cfg, shape))


def classifier_complexity(config: Path, layout: str | None = None) -> Complexity:
    """Of an ImageNet model at 224x224."""
    return total_complexity(model_complexity(classifier(config, layout), (224, 224)))


def classifier(config: Path, layout: str | None = None) -> nn.Module:
    """The model of an ImageNet config: backbone, neck and linear layer."""
    with without_mmpretrain():
        cfg = Config.fromfile(config).model
    if layout:
        cfg.backbone.layout = layout
    with empty_parameters():
        model = nn.Module()
        model.backbone = MODELS.build(cfg.backbone)
        if cfg.neck.type != 'GlobalAveragePooling':  # It has neither parameters nor products.
            model.neck = MODELS.build(cfg.neck)
        model.head = _LinearHead(cfg.head.in_channels, cfg.head.num_classes)
    return model.to('meta').eval()


@contextmanager
def without_mmpretrain() -> Iterator[None]:
    """Load ImageNet configs without their bases in mmpretrain, which hold no model."""
    get_bases = Config._get_base_files
    Config._get_base_files = staticmethod(
        lambda name: [base for base in get_bases(name) if not base.startswith('mmpretrain::')]
    )
    try:
        yield
    finally:
        Config._get_base_files = staticmethod(get_bases)


class _LinearHead(nn.Linear):
    """The computation of mmpretrain's ``LinearClsHead``, on pooled features."""

    def forward(self, features):
        features = features[-1]
        return super().forward(features if features.ndim == 2 else features.mean((2, 3)))


@contextmanager
def quick_bases() -> Iterator[None]:
    """Look up each package and read each of its metafiles once, not anew for every base."""
    load, path = config_utils.load, config_module.get_installed_path
    config_utils.load = lru_cache(maxsize=None)(load)
    config_module.get_installed_path = lru_cache(maxsize=None)(path)
    try:
        yield
    finally:
        config_utils.load, config_module.get_installed_path = load, path


def render(configs: Path) -> str:
    """All tables as Markdown."""
    with quick_bases():
        tables = [render_table(table, configs) for table in TABLES]
        return '\n'.join([HEADER, *tables, table_4.render(configs)])


def _cell(row: Row, name: str, ours: dict[str, float], cut: float = 0) -> Cell:
    """Compare with the paper; of several counters the nearest.

    Args:
        row (Row): The paper's.
        name (str): The cell's.
        ours (dict): Numbers by counter.
        cut (float): Size of the last digit where the paper cuts some numbers and rounds others.
    """
    paper = getattr(row, name)
    counter, value = min(ours.items(), key=lambda item: abs(item[1] - paper))
    digit = cut or (0.5 if paper == int(paper) and paper >= 10 else 0.05)
    near = abs(value - paper) <= max(TOLERANCE * paper, digit)
    if name in row.misprints:
        return Cell(paper, value, 'misprint', row.misprints[name])
    note = COUNTERS[counter] if len(ours) > 1 else ''
    status = 'reproduced' if near else 'differs'
    return Cell(paper, value, status, note, row.causes.get(name))


def render_table(table: Table, configs: Path) -> str:
    """One table as Markdown."""
    lines = [f'## {table.title}', '']
    if table.sizes:
        return '\n'.join([*lines, *_sizes(table, configs)])
    if needs_training(table):
        header = ['row', *table.metrics, 'command']
        rows = [[row.method, *_trained(row), _command(row, table)] for row in table.rows]
        return '\n'.join([*lines, *_markdown(header, rows), ''])
    height, width = table.shape
    lines += [f'FLOPs at {height}x{width} (height x width).', '']
    header = ['row', 'P (M)', 'F (G)', 'every product (G): hybrid layout', 'linear', *table.metrics]
    rows, notes = [], []
    for row in table.rows:
        if is_countable(row):
            result = count_row(row, table, configs)
            cells = [_text(result.params, notes), _text(result.flops, notes)]
            cells += [_giga(result.hybrid), _giga(result.linear)]
        else:
            cells = [f'{row.params} needs mmpretrain', f'{row.flops} needs mmpretrain', '', '']
        rows.append([row.method, *cells, *_trained(row)])
    lines += [*_markdown(header, rows), '']
    lines += [f'[{i}] {note}' + '\\' * (i < len(notes)) for i, note in enumerate(notes, 1)]
    lines += [''] * bool(notes)
    lines += ['```shell', *(_command(row, table) for row in table.rows), '```', '']
    return '\n'.join(lines)


def _sizes(table: Table, configs: Path) -> list[str]:
    """Ours alone, to the digit, of a table that prints none; then the commands."""
    header = ['row', 'parameters', 'every product (G)', *table.metrics]
    rows = []
    for row in table.rows:
        cost = complexity(configs / row.config, table.shape)
        rows.append([row.method, f'{cost.params:,}', f'{cost.total / 1e9:.3f}', *_trained(row)])
    note = 'The paper prints neither parameters nor FLOPs here: both are ours.'
    commands = [*(_command(row, table) for row in table.rows), table.then]
    return [note, '', *_markdown(header, rows), '', '```shell', *commands, '```', '']


def _text(cell: Cell, notes: list[str]) -> str:
    text = f'{cell.ours:.4g} / {cell.paper:g} {cell.status}'
    if cell.status != 'misprint':
        text += f' ({cell.deviation:+.1%}{", " * bool(cell.note)}{cell.note})'
    note = cell.note if cell.status == 'misprint' else _because(cell)
    if not note:
        return text
    if note not in notes:
        notes.append(note)
    return f'{text} [{notes.index(note) + 1}]'


def _because(cell: Cell) -> str:
    if cell.cause is None:
        return ''
    return cell.cause.text + ('' if cell.recount is None else f' {cell.recount:.4g}')


def _trained(row: Row) -> list[str]:
    return [f'{figure} needs training'.strip() for figure in row.metrics]


def _giga(cost: Complexity | None) -> str:
    return '' if cost is None else f'{cost.total / 1e9:.4g}'


def _command(row: Row, table: Table) -> str:
    words = ['tools/dist_train.sh', f'configs/{row.config}', str(devices_of(row.config))]
    if row.options:
        words += ['--cfg-options', row.options]
    elif starts_from_imagenet(row.config):
        words.append('$INIT')
    return ' '.join(words)


def devices_of(config: str) -> int:
    """Devices that a config is for: what its name says, or 8, which OpenMMLab's names leave out."""
    found = re.search(r'_(\d+)xb\d+', config)
    return int(found[1]) if found else 8


def starts_from_imagenet(config: str) -> bool:
    """Whether a model starts from weights that are to be named; baselines name their own."""
    return Path(config).parent.name not in ('imagenet', 'baselines', 'diffusion')


def _markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    header = list(header)
    return [
        f'| {" | ".join(cells)} |' for cells in (header, ['---'] * len(header), *map(list, rows))
    ]
