"""Latency and memory over the resolution, drawn: one line a variant, its name at its end."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..engine.figures import save_figure
from .benchmark import PEERS, Timing, parse_variant

Memory = tuple[float, float] | None
Value = Callable[[Timing, Memory], float]

NAMES = {
    'reference': 'RAVLT, as its authors run it',
    'eager': 'MirrorLA',
    'deploy': 'MirrorLA, deploy mode',
    'bf16': 'MirrorLA, deploy mode, bfloat16',
    'resnet50': 'ResNet-50',
    'swin-t': 'Swin-T',
    'pvtv2-b1': 'PVTv2-B1',
    'compile': 'torch.compile',
    'amp': 'autocast',
    'onnx': 'onnxruntime',
}
OTHERS = ('black', 'tab:red', 'tab:orange', 'tab:brown', 'tab:purple', 'tab:gray')


def draw(rows: list[tuple[Timing, Memory]], file: Path, title: str) -> None:
    """Draw what was measured at two sizes or more, on logarithmic axes.

    Args:
        rows (list[tuple[Timing, Memory]]): Timings and, of all or none, the memory.
        file (Path): A PNG.
        title (str): A line above the figure.
    """
    panels: list[tuple[str, Value]] = [('latency (ms)', lambda timing, _: timing.latency * 1e3)]
    if all(memory for _, memory in rows):
        panels.append(('peak memory of a step (MiB)', lambda _, memory: memory[0]))
    figure = Figure(figsize=(8 * len(panels), 5.5), layout='constrained')
    figure.suptitle(title, fontsize=9, color='dimgray')
    for axis, (unit, value) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        axis.set(xlabel='height × width of the image', ylabel=unit, xscale='log', yscale='log')
        _draw_lines(axis, rows, value)
    save_figure(figure, file, dpi=110)


def _draw_lines(axis: Axes, rows: list[tuple[Timing, Memory]], value: Value) -> None:
    ends = {}
    for variant, colour in colours([timing.variant for timing, _ in rows]).items():
        points = sorted(
            (_pixels(timing), value(timing, memory))
            for timing, memory in rows
            if timing.variant == variant
        )
        style = (
            dict(marker='o', lw=2.5)
            if _is_ours(variant)
            else dict(marker='s', lw=1.5, ls='--', ms=5)
        )
        axis.plot(*zip(*points), color=colour, **style)
        ends[variant] = (*points[-1], colour)
    sizes = {_pixels(timing): '{}\n× {}'.format(*timing.shape) for timing, _ in rows}
    axis.set_xticks(list(sizes), sizes.values())
    axis.minorticks_off()
    axis.yaxis.set_major_formatter('{x:g}')
    low, high = axis.get_ylim()
    steps = [n * 10**power for power in range(-2, 7) for n in (1, 2, 5)]
    axis.set_yticks([step for step in steps if low <= step <= high])
    axis.set_ylim(low, high)
    axis.grid(alpha=0.3)
    axis.spines[['top', 'right']].set_visible(False)
    places = spread([y for _, y, _ in ends.values()], (high / low) ** 0.045)
    for (variant, (x, y, colour)), place in zip(ends.items(), places):
        text = f'{label(variant)}, {y:,.0f}'
        axis.annotate(
            text, (x, y), (x * 1.06, place), color=colour, va='center', annotation_clip=False
        )


def _is_ours(variant: str) -> bool:
    return not parse_variant(variant) & {'reference', *PEERS}


def _pixels(timing: Timing) -> int:
    return timing.shape[0] * timing.shape[1]


def label(variant: str) -> str:
    """The name of a variant in words, such as ``'ResNet-50, onnxruntime'``."""
    words = parse_variant(variant)
    named = words & {'reference', 'eager', 'deploy', 'bf16', *PEERS}
    start = [] if named else [NAMES['eager']]
    return ', '.join([*start, *(name for word, name in NAMES.items() if word in words)])


def colours(variants: list[str]) -> dict[str, object]:
    """Blues for this package's variants, from light to dark, and another colour for each other."""
    variants = list(dict.fromkeys(variants))
    ours = list(filter(_is_ours, variants))
    others = [name for name in variants if name not in ours]
    blues = {
        name: colormaps['Blues'](0.5 + 0.5 * (i + 1) / len(ours)) for i, name in enumerate(ours)
    }
    chosen = {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}
    return {name: {**blues, **chosen}[name] for name in variants}


def spread(values: list[float], factor: float) -> list[float]:
    """Places on a logarithmic axis near positive values, each at least ``factor`` above the last.

    Those that are too near each other are moved apart around their middle.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    groups: list[list[int]] = []
    for i in order:
        groups.append([i])
        while len(groups) > 1 and _bottom(groups[-1], values, factor) < factor * _top(
            groups[-2], values, factor
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
    places = list(values)
    for group in groups:
        for i, number in enumerate(group):
            places[number] = _bottom(group, values, factor) * factor**i
    return places


def _bottom(group: list[int], values: list[float], factor: float) -> float:
    middle = prod(values[number] for number in group) ** (1 / len(group))
    return middle / factor ** ((len(group) - 1) / 2)


def _top(group: list[int], values: list[float], factor: float) -> float:
    return _bottom(group, values, factor) * factor ** (len(group) - 1)
