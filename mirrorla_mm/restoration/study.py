"""The rows of the super-resolution study, and what may be concluded from its results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

from ..analysis.compare import map_facts
from ..analysis.study_runs import half_width, read_runs
from ..attention import Attention
from ..engine.figures import save_figure


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


# PolaFormer and NaLaFormer bring a gate and a 5x5 convolution of v: a fair comparison with them has
# both.
_GATED = dict(gate=True, lepe_kernel=5)

# In the order of interest, the dearest last: a study that is stopped has answered the first
# questions.
ROWS = {
    'relu': Row('ReLU', dict(type='ReLUAttention')),
    'mirror': Row('ReLU + mirror', _mirror()),
    'random-mirror': Row('ReLU + random mirror, not learned', _mirror(), frozen=True),
    'lsa': Row('LSA, the authors’ own', dict(type='LSA')),
    'blocks-variance': Row('ReLU + blocks, variance-aware', _mirror(cross_head=False)),
    'blocks': Row('ReLU + blocks, fixed angles', _mirror(variance_aware=False, cross_head=False)),
    'elu': Row('ELU + 1', dict(type='ELUAttention')),
    'pola': Row('PolaFormer', dict(type='PolaAttention')),
    'nala': Row('NaLaFormer', dict(type='NaLaAttention')),
    'relu-gated': Row('ReLU, with convolution and gate', dict(type='ReLUAttention', **_GATED)),
    'mirror-gated': Row('ReLU + mirror, with convolution and gate', dict(_mirror(), **_GATED)),
    'softmax-w32': Row(
        'softmax, windows of 32', dict(type='SoftmaxAttention'), dict(window_size=32)
    ),
}
BASELINE = 'relu'
MARKERS = 'osD^v*'  # of seeds in a picture
# Whose attention the others learn from in a transfer.
TEACHER = 'lsa'
# What the verdict is on: a row, and what it is set against.
QUESTIONS = (('mirror', 'relu'), ('mirror-gated', 'relu-gated'))


@dataclass(frozen=True)
class Difference:
    """A row less another in dB, over what both have.

    Attributes:
        mean (float): Over images and seeds.
        by_seed (float): Half width of the 95 % interval from the seeds' means; infinite for one.
        by_image (float): The same from the images, each the mean of its seeds.
    """

    mean: float
    by_seed: float
    by_image: float

    @property
    def width(self) -> float:
        """Half of the wider interval there is; that of the images alone where there is one seed."""
        return max(self.by_seed, self.by_image) if math.isfinite(self.by_seed) else self.by_image

    @property
    def effect(self) -> str:
        """The conclusion that the numbers allow."""
        if not math.isfinite(self.by_seed):
            return 'leaves open, by a single seed, what it does'
        if abs(self.mean) <= self.width:
            return 'does nothing that can be told from chance'
        return 'helps' if self.mean > 0 else 'hurts'


def read_results(folder: Path) -> list[dict]:
    """Results of all finished runs, sorted by row and seed; see :func:`~.read_runs`."""
    return read_runs(folder.glob('*_seed-*.json'), list(ROWS))


def after_transfer(results: Iterable[dict]) -> list[dict]:
    """The results that runs had after their transfer, before they were trained with the host."""
    return [{**result, **result['transfer']} for result in results if 'transfer' in result]


def difference(
    row: str, results: Sequence[dict], dataset: str, baseline: str = BASELINE, comparisons: int = 1
) -> Difference | None:
    """Compare a row with another, seed by seed and image by image.

    Args:
        row (str): A row.
        results (Sequence[dict]): From :func:`read_results`.
        dataset (str): Which images.
        baseline (str): The row that it is set against.
        comparisons (int): How many the 95 % are of, together; see :func:`~.half_width`.

    Returns:
        Difference, optional: None if the two have no seed in common.
    """
    runs = {(r['row'], r['seed']): r['PSNR'][dataset] for r in results}
    seeds = [seed for name, seed in runs if name == row and (baseline, seed) in runs]
    if not seeds:
        return None
    pairs = [
        {image: own - runs[baseline, seed][image] for image, own in runs[row, seed].items()}
        for seed in seeds
    ]
    by_image = [mean(pair[image] for pair in pairs) for image in pairs[0]]
    by_seed = [mean(pair.values()) for pair in pairs]
    return Difference(
        mean(by_seed), half_width(by_seed, comparisons), half_width(by_image, comparisons)
    )


def table(results: Sequence[dict]) -> str:
    """All rows in Markdown: PSNR on each data set, against the baseline, and the maps' facts."""
    datasets = list(results[0]['PSNR'])
    header = ['row', 'seeds']
    for dataset in datasets:
        header += [f'{dataset}, dB', f'against {ROWS[BASELINE].label}', '± by seed', '± by image']
    header += ['dead entries', 'effective rank']
    learned = all('explained' in r for r in results)
    lines = [[*header, 'explained'] if learned else header]
    lines.append(['---'] * len(lines[0]))
    for name, row in ROWS.items():
        runs = [r for r in results if r['row'] == name]
        if not runs:
            continue
        line = [row.label, str(len(runs))]
        for dataset in datasets:
            line.append(f'{mean(mean(r["PSNR"][dataset].values()) for r in runs):.3f}')
            found = None if name == BASELINE else difference(name, results, dataset)
            line += [''] * 3 if found is None else _numbers(found)
        line += [f'{mean(r["dead"] for r in runs):.1%}', f'{mean(r["rank"] for r in runs):.2f}']
        if learned:
            line.append(f'{mean(r["explained"] for r in runs):.1%}')
        lines.append(line)
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _numbers(found: Difference) -> list[str]:
    widths = (found.by_seed, found.by_image)
    return [f'{found.mean:+.3f}', *(f'{w:.3f}' if math.isfinite(w) else '-' for w in widths)]


def verdict(results: Sequence[dict], questions: Iterable[tuple[str, str]] = QUESTIONS) -> str:
    """The plain sentences: on each row and what it is set against, one for each data set.

    The 95 % are of all sentences together, so that none of them says more than chance would.
    """
    asked = [
        (row, baseline, dataset)
        for row, baseline in questions
        for dataset in results[0]['PSNR']
        if difference(row, results, dataset, baseline) is not None
    ]
    sentences = []
    for row, baseline, dataset in asked:
        found = difference(row, results, dataset, baseline, len(asked))
        assert found is not None
        many = f' of all {len(asked)} together' if len(asked) > 1 else ''
        over = '' if math.isfinite(found.by_seed) else ', over the images'
        sentences.append(
            f'On {dataset}, {ROWS[row].label} against {ROWS[baseline].label} {found.effect} '
            f'here: {found.mean:+.3f} ± {found.width:.3f} dB (95 %{many}{over}).'
        )
    return '\n'.join(sentences)


def plot(results: Sequence[dict], path: Path) -> None:
    """Draw each row's difference to the baseline with its interval, and each seed as a dot.

    Where rows start from the authors' weights, LSA is left out: it alone has nothing to learn anew.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    datasets = list(results[0]['PSNR'])
    left_out = {BASELINE, *(['lsa'] if results[0]['settings']['start'] == 'authors' else [])}
    figure = Figure(figsize=(4.2 * len(datasets) + 1, 4), layout='constrained')
    axes = figure.subplots(1, len(datasets), sharey=True, squeeze=False)[0]
    seeds = sorted({r['seed'] for r in results})
    for axis, dataset in zip(axes, datasets):
        names = [n for n in reversed(ROWS) if n not in left_out]
        found = {name: difference(name, results, dataset) for name in names}
        found = {name: value for name, value in found.items() if value is not None}
        for height, (name, value) in enumerate(found.items()):
            axis.errorbar(
                value.mean, height, xerr=value.width, fmt='o', color='black', capsize=3, zorder=2
            )
            for number, seed in enumerate(seeds):
                own = difference(name, [r for r in results if r['seed'] == seed], dataset)
                if own is not None and len(seeds) > 1:
                    marker = MARKERS[number % len(MARKERS)]
                    axis.plot(own.mean, height + 0.25, marker, color=f'C{number}', ms=4)
        axis.set_yticks(range(len(found)), [ROWS[name].label for name in found])
        axis.set_ylim(-0.6, len(found) - 0.3)
        axis.locator_params(axis='x', nbins=6)
        axis.axvline(0, color='black', lw=0.8)
        axis.set_xlabel(f'dB against {ROWS[BASELINE].label}, 95 %')
        axis.set_title(dataset)
        axis.grid(axis='x', alpha=0.3)
    if len(seeds) > 1:
        handles = [
            Line2D([], [], ls='', ms=4, color=f'C{i}', marker=MARKERS[i % len(MARKERS)])
            for i in range(len(seeds))
        ]
        labels = [f'seed {seed}' for seed in seeds]
        figure.legend(handles, labels, loc='outside lower center', ncols=len(seeds), frameon=False)
    figure.set_figheight(1.8 + 0.25 * len(found))
    save_figure(figure, path, dpi=110)


def slot_facts(model: nn.Module, images: Iterable[Tensor]) -> dict[str, float]:
    """Dead entries and effective rank of the attention maps, averaged over all modules.

    Of each image the window in the middle is looked at, in every attention.

    Args:
        model (nn.Module): A host, in evaluation mode.
        images (Iterable[Tensor]): Its inputs, shape (1, 3, h, w) each.

    Returns:
        dict[str, float]: ``dead`` and ``rank``, see :class:`~..analysis.compare.MapFacts`.
    """
    seen: list[tuple] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args: seen.append((module, *args)))
        for module in model.modules()
        if isinstance(module, Attention)
    ]
    try:
        with torch.no_grad():
            for image in images:
                model(image)
    finally:
        for hook in hooks:
            hook.remove()
    facts = [map_facts(m, x[len(x) // 2, None], shape, side=8) for m, x, shape in seen]
    return dict(dead=mean(f.dead for f in facts), rank=mean(f.effective_rank for f in facts))
