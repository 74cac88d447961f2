"""Loss and metrics of runs, read from the logs of mmengine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..engine.errors import UserError


@dataclass
class Curves:
    """The log of one work dir: step to value, for the loss and for each metric."""

    name: str
    loss: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, dict[int, float]] = field(default_factory=dict)


def read_curves(work_dir: Path) -> Curves:
    """Read all ``vis_data/scalars.json`` of a work dir; the later wins where a resumed run repeats.

    Args:
        work_dir (Path): Folder of a run, with one subfolder a start of it.

    Returns:
        Curves: Steps are iterations of training; a metric stands at the last one before it.

    Raises:
        UserError: If there is no log.
    """
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    if not logs:
        raise UserError(
            f'{work_dir} holds no */vis_data/scalars.json: is it the work dir of a run?'
        )
    curves = Curves(work_dir.name)
    last = 0  # A resumed run may begin with the validation that was lost.
    for log in logs:
        for line in log.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # A killed run may leave half a line.
                continue
            if 'loss' in entry:
                last = entry.get('iter', entry['step'])
                curves.loss[last] = entry['loss']
                continue
            step = entry.get('iter', last) or last or entry.get('step', 0)
            for key, value in entry.items():
                if isinstance(value, (int, float)) and key not in (
                    'step',
                    'iter',
                    'epoch',
                    'time',
                    'data_time',
                    'memory',
                    'lr',
                ):
                    curves.metrics.setdefault(key, {})[step] = value
    return curves


def chosen_metrics(runs: list[Curves], metric: str | None) -> list[str]:
    """The metrics to draw: the one asked for, else each task's own (mAP, mIoU, PSNR).

    Args:
        runs (list[Curves]): Detectors, segmentors and others, together or not.
        metric (str, optional): Drawn in place of their own.

    Raises:
        UserError: If the one asked for is in no run, naming those there are.
    """
    known = list(dict.fromkeys(key for run in runs for key in run.metrics))
    if metric is None:
        return list(dict.fromkeys(_own_metric(run) for run in runs if run.metrics))
    if metric not in known:
        raise UserError(
            f'No run logged the metric {metric!r}; there are {", ".join(known) or "none"}.'
        )
    return [metric]


def _own_metric(run: Curves) -> str:
    own = (key for key in run.metrics if key.endswith(('mAP', 'mIoU', 'PSNR')))
    return next(own, next(iter(run.metrics)))
