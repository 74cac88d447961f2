"""Parameters and FLOPs in the metafiles, tables of configs in the READMEs, and the model zoo."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from mmengine import load
from mmengine.config import Config

from .flops import Complexity, config_complexity, default_shape, total_complexity
from .paper_data import TABLES
from .paper_tables import classifier_complexity, quick_bases

# Backbones that exist in mmpretrain alone.
PRETRAIN_HOSTS = ('van-', 'xcit-')
LISTED = re.compile(r'(?:^\|.*\n)+', re.M)
MODEL = re.compile(
    r'  - Name: .*\n(?:    In Collection: .*\n)?    Config: (?P<config>.*)\n(?:    .*\n)+'
)
COUNTS = re.compile(r'      (?:Parameters|FLOPs): .*\n')
HEADLINES = ('AP b', 'AP m', 'mIoU', 'top-1')
"""Figures of the paper that the model zoo shows."""
ZOO = """\
# Model zoo

All {count} configs, made by `python tools/analysis_tools/metafiles.py` from the metafiles; a test
fails when this page is stale. Parameters and FLOPs (multiply-accumulates of every product, at the
size that each folder's README names) are counted here. **What stands under "the paper's" is the
paper's and not reproduced here: no config has been trained, so no weights can be downloaded.**
With RAVLT's ImageNet weights they have [a start](fine_tuning.md); a result of yours is welcome as
an issue.
"""


def count(config: Path) -> Complexity | None:
    """Count a config as ``tools/analysis_tools/get_flops.py`` does; None without its backbone."""
    if any(host in config.name for host in PRETRAIN_HOSTS) and not find_spec('mmpretrain'):
        return None
    if config.parent.name == 'imagenet':
        return classifier_complexity(config)
    cfg = Config.fromfile(config)
    return total_complexity(config_complexity(cfg, default_shape(cfg)))


def fill(metafile: Path, count: Callable[[Path], Complexity | None] = count) -> str:
    """Write ``Parameters`` and ``FLOPs`` (every product) into the models of a metafile.

    Args:
        metafile (Path): A ``metafile.yml`` in a folder of ``configs``.
        count (Callable): Complexity of a config. None keeps the numbers that stand there.

    Returns:
        str: The new text.
    """

    def filled(match: re.Match) -> str:
        model = match[0]
        cost = count(metafile.parents[2] / match['config'])
        if cost is None:
            return model
        numbers = f'      Parameters: {cost.params}\n      FLOPs: {cost.total}\n'
        return re.sub(r'(    Metadata:\n)', rf'\1{numbers}', COUNTS.sub('', model))

    with quick_bases():
        return MODEL.sub(filled, metafile.read_text(encoding='utf-8'))


def tabulate(readme: Path, models: list[dict]) -> str:
    """Replace a README's first table by one of these models; a linear layout stands in its row.

    Args:
        readme (Path): A ``README.md`` with a table of configs.
        models (list[dict]): ``Models`` of the metafile beside it.

    Returns:
        str: The new text.
    """
    known = {model['Name']: model for model in models}
    linear = {name for name in known if '-linear_' in name}
    head = ['config', 'params (M)', 'FLOPs (G)'] + ['linear layout', 'FLOPs (G)'] * bool(linear)
    rows = [head, ['---'] * len(head)]
    for name in sorted(known.keys() - linear):
        row = [f'[{name}]({name}.py)', *_numbers(known[name])]
        if linear:
            twin = next((n for n in linear if n.replace('-linear_', '_') == name), None)
            row += [f'[config]({twin}.py)', _numbers(known[twin])[1]] if twin else ['', '']
        rows.append(row)
    table = ''.join(f'| {" | ".join(row)} |\n' for row in rows)
    return LISTED.sub(lambda _: table, readme.read_text(encoding='utf-8'), count=1)


def _numbers(model: dict) -> list[str]:
    counts = model['Metadata']
    return [
        f'{counts[name] / unit:.1f}' if name in counts else ''
        for name, unit in (('Parameters', 1e6), ('FLOPs', 1e9))
    ]


def zoo(root: Path) -> str:
    """Write the model zoo: a table a family, in the order of the model index.

    Args:
        root (Path): Of the repository.

    Returns:
        str: The text of ``docs/model_zoo.md``.
    """
    paper, parts, count = _paper_figures(), [], 0
    for metafile in load(root / 'model-index.yml')['Import']:
        models = models_of(root / metafile)
        count += len(models)
        readme = Path(metafile).with_name('README.md')
        title = (root / readme).read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')
        head = ['config', 'task', 'params (M)', 'FLOPs (G)', "the paper's", 'ours']
        rows = [head, ['---'] * len(head)]
        for model in sorted(models, key=lambda model: model['Name']):
            result = model['Results'][0]
            rows.append(
                [
                    f'[{model["Name"]}](../{model["Config"]})',
                    f'{result["Task"]}, {result["Dataset"]}',
                    *_numbers(model),
                    paper.get(model['Config'].removeprefix('configs/'), ''),
                    'not trained',
                ]
            )
        parts += [
            f'\n## {title}\n\nCommands and notes: `{readme.as_posix()}`.\n\n',
            *(f'| {" | ".join(row)} |\n' for row in rows),
        ]
    return ZOO.format(count=count) + ''.join(parts)


def _paper_figures() -> dict[str, str]:
    """Figures that the paper prints of each config, ablations apart."""
    figures = {}
    for table in TABLES:
        for row in table.rows:
            named = [
                f'{name} {value}'
                for name, value in zip(table.metrics, row.metrics)
                if name.startswith(HEADLINES)
            ]
            if not row.options:
                figures.setdefault(row.config, ', '.join(named))
    return figures


def models_of(metafile: Path) -> list[dict]:
    """``Models`` of a metafile."""
    return load(metafile)['Models']
