"""The rows of the super-resolution study, and what may be concluded from its results."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Row:
    """One method in the slot.

    Attributes:
        label (str): For people.
        attn_cfg (dict): What the host builds.
        host (dict): Further options of the host.
        frozen (bool): Leave the reflections at their random start.
    """

    label: str
    attn_cfg: dict
    host: dict = field(default_factory=dict)
    frozen: bool = False


def _mirror(**options) -> dict:
    return dict(type='ReLUAttention', reflection=options)


# In the order of interest: a study that is stopped has answered the first questions.
ROWS = {
    'relu': Row('ReLU', dict(type='ReLUAttention')),
    'mirror': Row('ReLU + mirror', _mirror()),
    'random-mirror': Row('ReLU + random mirror, not learned', _mirror(), frozen=True),
    'lsa': Row('LSA, the authors’ own', dict(type='LSA')),
    'softmax-w32': Row(
        'softmax, windows of 32', dict(type='SoftmaxAttention'), dict(window_size=32)
    ),
    'blocks': Row('ReLU + blocks, fixed angles', _mirror(variance_aware=False, cross_head=False)),
    'blocks-variance': Row('ReLU + blocks, variance-aware', _mirror(cross_head=False)),
    'elu': Row('ELU + 1', dict(type='ELUAttention')),
    'pola': Row('PolaFormer', dict(type='PolaAttention')),
    'nala': Row('NaLaFormer', dict(type='NaLaAttention')),
}
BASELINE = 'relu'


@dataclass(frozen=True)
class Difference:
    """A row less the baseline in dB, over what both have.

    Attributes:
        mean (float): Over images and seeds.
        by_seed (float): Half width of the 95 % interval from the seeds' means; infinite for one.
        by_image (float): The same from the images, each the mean of its seeds.
    """

    mean: float
    by_seed: float
    by_image: float

    @property
    def resolved(self) -> bool:
        """Whether both intervals leave out zero."""
        return abs(self.mean) > max(self.by_seed, self.by_image)


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % interval of a mean, from the t distribution."""
    from scipy.stats import t

    if len(values) < 2:
        return math.inf
    quantile = t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)
    return quantile * stdev(values) / math.sqrt(len(values))


def read_results(work_dir: Path) -> list[dict]:
    """Results of all finished runs, sorted by row and seed."""
    results = [json.loads(path.read_text()) for path in work_dir.glob('*/seed-*.json')]
    return sorted(results, key=lambda r: (list(ROWS).index(r['row']), r['seed']))


def difference(row: str, results: Sequence[dict], dataset: str) -> Difference | None:
    """Compare a row with the baseline, seed by seed and image by image.

    Args:
        row (str): A row.
        results (Sequence[dict]): From :func:`read_results`.
        dataset (str): Which images.

    Returns:
        Difference, optional: None if the two have no seed in common.
    """
    runs = {(r['row'], r['seed']): r['PSNR'][dataset] for r in results}
    seeds = [seed for name, seed in runs if name == row and (BASELINE, seed) in runs]
    if not seeds:
        return None
    pairs = [
        {image: own - runs[BASELINE, seed][image] for image, own in runs[row, seed].items()}
        for seed in seeds
    ]
    by_image = [mean(pair[image] for pair in pairs) for image in pairs[0]]
    by_seed = [mean(pair.values()) for pair in pairs]
    return Difference(mean(by_seed), half_width(by_seed), half_width(by_image))


def table(results: Sequence[dict]) -> str:
    """All rows in Markdown: PSNR on each data set, and against the baseline."""
    datasets = list(results[0]['PSNR'])
    header = ['row', 'seeds']
    for dataset in datasets:
        header += [f'{dataset}, dB', f'against {ROWS[BASELINE].label}', '± by seed', '± by image']
    lines = [header, ['---'] * len(header)]
    for name, row in ROWS.items():
        runs = [r for r in results if r['row'] == name]
        if not runs:
            continue
        line = [row.label, str(len(runs))]
        for dataset in datasets:
            line.append(f'{mean(mean(r["PSNR"][dataset].values()) for r in runs):.3f}')
            found = None if name == BASELINE else difference(name, results, dataset)
            line += ['', '', ''] if found is None else _numbers(found)
        lines.append(line)
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _numbers(found: Difference) -> list[str]:
    return [f'{found.mean:+.3f}', f'{found.by_seed:.3f}', f'{found.by_image:.3f}']


def verdict(results: Sequence[dict], row: str = 'mirror') -> str:
    """The plain sentence on a row, one for each data set."""
    sentences = []
    for dataset in results[0]['PSNR']:
        found = difference(row, results, dataset)
        if found is None:
            continue
        effect = 'does nothing that can be told from chance'
        if found.resolved:
            effect = 'helps' if found.mean > 0 else 'hurts'
        width = max(found.by_seed, found.by_image)
        sentences.append(
            f'On {dataset}, {ROWS[row].label} against {ROWS[BASELINE].label} {effect} here: '
            f'{found.mean:+.3f} ± {width:.3f} dB (95 %).'
        )
    return '\n'.join(sentences)


def plot(results: Sequence[dict], path: Path) -> None:
    """Draw each row's difference to the baseline with the wider of its two intervals."""
    from matplotlib.figure import Figure

    datasets = list(results[0]['PSNR'])
    figure = Figure(figsize=(4.2 * len(datasets) + 1, 4), layout='constrained')
    axes = figure.subplots(1, len(datasets), sharey=True, squeeze=False)[0]
    for axis, dataset in zip(axes, datasets):
        found = {n: difference(n, results, dataset) for n in reversed(ROWS) if n != BASELINE}
        found = {name: value for name, value in found.items() if value is not None}
        for height, value in enumerate(found.values()):
            width = max(value.by_seed, value.by_image)
            axis.errorbar(
                value.mean, height, xerr=width if math.isfinite(width) else 0, fmt='o', capsize=3
            )
        axis.set_yticks(range(len(found)), [ROWS[name].label for name in found])
        axis.axvline(0, color='black', lw=0.8)
        axis.set_xlabel(f'dB against {ROWS[BASELINE].label}')
        axis.set_title(dataset)
    figure.savefig(path, dpi=110)
