"""The rows of a controlled study, and the conclusions that their results allow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev

from ..engine.figures import save_figure
from .study_runs import half_width, read_runs


@dataclass(frozen=True)
class Row:
    """One attention of the study.

    Attributes:
        table (str): The table of the paper that it belongs to.
        label (str): For people.
        attn_cfg (dict): The attention that the host builds.
        paper (float, optional): The paper's top-1 accuracy on ImageNet in percent, where given.
    """

    table: str
    label: str
    attn_cfg: dict
    paper: float | None = None


def _mirror(**reflection) -> dict:
    return dict(type='MirrorAttention', reflection=reflection)


# In the order of interest: a study that is stopped has answered the first questions.
ROWS = {
    'relu': Row('Tab. 7', 'ReLU', dict(type='ReLUAttention'), 81.8),
    'relu-mirror': Row('Tab. 7', 'ReLU + mirror', dict(type='ReLUAttention', reflection={}), 82.4),
    'softmax': Row('Tab. 7', 'softmax', dict(type='SoftmaxAttention'), 81.2),
    'mirror': Row('Tab. 8', 'MirrorLA, λ = 1, α = π/2', _mirror(), 76.0),
    'no-variance': Row('Tab. 8', 'without modulation', _mirror(variance_aware=False), 75.5),
    'no-cross-head': Row('Tab. 8', 'without cross-head', _mirror(cross_head=False), 75.7),
    'elu': Row('Tab. 7', 'ELU + 1', dict(type='ELUAttention')),
    'rala': Row('Tab. 7', 'ELU + 1, rank-augmented (RALA)', dict(type='RALA')),
    'pola': Row('Tab. 7', 'PolaFormer', dict(type='PolaAttention'), 82.6),
    'nala': Row('Tab. 7', 'NaLaFormer', dict(type='NaLaAttention')),
    'lam-0.5': Row('Tab. 8', 'λ = 0.5', _mirror(lam=0.5), 75.7),
    'lam-0.25': Row('Tab. 8', 'λ = 0.25', _mirror(lam=0.25), 75.8),
    'alpha-pi-4': Row('Tab. 8', 'α = π/4', _mirror(alpha_max=math.pi / 4), 75.9),
    'alpha-pi-8': Row('Tab. 8', 'α = π/8', _mirror(alpha_max=math.pi / 8), 75.8),
}


# The row that the others of a table are compared with.
BASELINES = {'Tab. 7': 'relu', 'Tab. 8': 'mirror'}


@dataclass(frozen=True)
class Comparison:
    """Two rows over the seeds that both have.

    Attributes:
        difference (float): Mean of first minus second, in percentage points.
        half_width (float): Of its confidence interval, from the paired t distribution; infinite for
            one seed.
    """

    first: str
    second: str
    difference: float
    half_width: float

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves out zero."""
        return abs(self.difference) > self.half_width


def compare(
    first: str, second: str, scores: dict[str, dict[int, float]], pairs: int = 1
) -> Comparison:
    """Compare two rows seed by seed.

    Args:
        first (str): A row.
        second (str): Another row; the two have a seed in common.
        scores (dict): Row to seed to score.
        pairs (int): How many pairs are looked at: the 95 % are of all of them together
            (Bonferroni), so that none differs by chance alone. Defaults to 1.

    Returns:
        Comparison: First minus second.
    """
    seeds = sorted(scores[first].keys() & scores[second].keys())
    differences = [scores[first][seed] - scores[second][seed] for seed in seeds]
    return Comparison(first, second, mean(differences), half_width(differences, pairs))


def read_results(work_dir: Path) -> list[dict]:
    """Results of all finished runs under a folder, sorted by row and seed."""
    return read_runs(work_dir.glob('*/seed-*.json'), list(ROWS))


def scores_of(results: Iterable[dict], metric: str = 'mIoU') -> dict[str, dict[int, float]]:
    """Row to seed to score."""
    scores: dict[str, dict[int, float]] = {}
    for result in results:
        scores.setdefault(result['row'], {})[result['seed']] = result[metric]
    return scores


def mean_and_spread(values: Sequence[float]) -> str:
    """``mean ± standard deviation``, or the one value there is."""
    values = list(values)
    spread = f' ± {stdev(values):.2f}' if len(values) > 1 else ''
    return f'{mean(values):.2f}{spread}'


def results_table(results: Sequence[dict]) -> str:
    """Rows against the paper's accuracy, in Markdown, one table of the paper after the other."""
    lines = [
        '| table | row | mIoU, mean ± s.d. | against the baseline, paired, 95 % | aAcc | seeds | '
        'mIoU of each seed | paper, top-1 |',
        '| --- | --- | --- | --- | --- | --- | --- | --- |',
    ]
    scores = scores_of(results)
    by_row: dict[str, list[dict]] = {}
    for result in results:
        by_row.setdefault(result['row'], []).append(result)
    for name in sorted(by_row, key=lambda name: ROWS[name].table):
        row, runs = ROWS[name], by_row[name]
        each = ', '.join(f'{run["mIoU"]:.2f}' for run in runs)
        lines.append(
            f'| {row.table} | {row.label} | {mean_and_spread([run["mIoU"] for run in runs])} | '
            f'{against_baseline(name, scores)} | '
            f'{mean_and_spread([run["aAcc"] for run in runs])} | {len(runs)} | {each} | '
            f'{row.paper or "-"} |'
        )
    return '\n'.join(lines)


def against_baseline(name: str, scores: dict[str, dict[int, float]]) -> str:
    """``difference ± half its 95 % interval`` to the baseline of the row's table."""
    baseline = BASELINES[ROWS[name].table]
    if name == baseline:
        return 'baseline'
    if not scores[name].keys() & scores.get(baseline, {}).keys():
        return '-'
    pair = compare(name, baseline, scores)
    return f'{pair.difference:+.2f} ± {pair.half_width:.2f}'


def ordering(scores: dict[str, dict[int, float]], table: str) -> str:
    """Whether the paper's order of the rows of one table shows, in words.

    Pairs that the paper sets apart are counted, and among them those whose interval leaves out
    zero: only these are evidence at all.
    """
    names = [
        sorted(pair, key=lambda name: -ROWS[name].paper)
        for pair in combinations([n for n in scores if ROWS[n].table == table], 2)
        if all(ROWS[n].paper for n in pair) and ROWS[pair[0]].paper != ROWS[pair[1]].paper
    ]
    pairs = [compare(*pair, scores, pairs=len(names)) for pair in names]
    if not pairs:
        return f'{table}: no two rows that the paper sets apart have been run.'
    agree = sum(pair.difference > 0 for pair in pairs)
    resolved = [pair for pair in pairs if pair.resolved]
    text = (
        f'{table}: {agree} of {len(pairs)} pairs stand in the order of the paper (chance: half); '
        f'{len(resolved)} of them differ by more than the spread of the seeds explains (paired t, '
        '95 % for all pairs together).'
    )
    for pair in resolved:
        text += (
            f' {ROWS[pair.first].label} against {ROWS[pair.second].label}: '
            f'{pair.difference:+.2f} ± {pair.half_width:.2f}, '
            f'{"as" if pair.difference > 0 else "against"} the paper.'
        )
    if not any(pair.difference > 0 for pair in resolved):
        text += " So the paper's ordering does not show at this scale."
    elif all(pair.resolved and pair.difference > 0 for pair in pairs):
        text += " So the paper's ordering shows."
    else:
        text += " So the paper's ordering shows in part."
    return text


def plot(results: Sequence[dict], path: Path, title: str) -> None:
    """Every seed as a dot of its colour, the mean as a bar, one panel a table of the paper.

    Args:
        results (Sequence[dict]): From :func:`read_results`, not empty.
        path (Path): PNG to write.
        title (str): Above the panels.
    """
    from matplotlib.figure import Figure

    scores = scores_of(results)
    seeds = sorted({seed for row in scores.values() for seed in row})
    tables = sorted({ROWS[name].table for name in scores})
    counts = [sum(ROWS[name].table == table for name in scores) for table in tables]
    figure = Figure(figsize=(7.5, 1.4 + 0.35 * sum(counts)), layout='constrained')
    axes = figure.subplots(len(tables), 1, sharex=True, squeeze=False, height_ratios=counts)[:, 0]
    for axis, table in zip(axes, tables):
        names = [name for name in scores if ROWS[name].table == table]
        names.sort(key=lambda name: mean(scores[name].values()))
        for number, seed in enumerate(seeds):
            heights = [height for height, name in enumerate(names) if seed in scores[name]]
            values = [scores[names[height]][seed] for height in heights]
            axis.plot(values, heights, 'o-', color=f'C{number}', lw=0.6, label=f'seed {seed}')
        means = [mean(scores[name].values()) for name in names]
        axis.plot(means, range(len(names)), '|', color='black', ms=14, mew=2, label='mean')
        axis.set_yticks(range(len(names)), [ROWS[name].label for name in names])
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.set_title(table, loc='left', fontsize='medium')
        axis.grid(axis='x', alpha=0.3)
    axes[-1].set_xlabel('mIoU (%)')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=8)
    figure.suptitle(title, fontsize='medium')
    save_figure(figure, path, dpi=110)
