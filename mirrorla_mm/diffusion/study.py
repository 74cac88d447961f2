"""The arms of the study on drawn shapes, its metrics, and what its results allow to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..analysis.study_runs import half_width, read_runs
from ..engine.figures import save_figure
from .sampling import tile, to_uint8
from .shapes import CLASSES, DrawnShapes

REFERENCE = 'softmax'
COLUMNS = 8  # Images of a class in the report's grids.


@dataclass(frozen=True)
class Arm:
    """One attention in the host.

    Attributes:
        label (str): Name in tables.
        attn_cfg (dict): What the host builds.
    """

    label: str
    attn_cfg: dict


_HELPED = dict(type='ReLUAttention', gate=True, lepe_kernel=5)
ARMS = {
    'softmax': Arm('softmax', dict(type='SoftmaxAttention')),
    'relu': Arm('ReLU', dict(type='ReLUAttention')),
    'control': Arm('ReLU + gate + lepe', _HELPED),
    'mirror': Arm('mirror + gate + lepe', dict(_HELPED, reflection={})),
}


def drawings(length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Real images in [-1, 1], shape (n, 3, 32, 32), and their classes."""
    data = DrawnShapes(length, seed)
    samples = [data.get_data_info(index) for index in range(length)]
    images = np.stack([sample['img'] for sample in samples])
    labels = torch.tensor([sample['gt_label'] for sample in samples])
    return torch.from_numpy(images).float() / 127.5 - 1, labels


class Judge(nn.Module):
    """A small classifier of 32x32 images, whose features are 64 numbers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        sizes = (3, width, 2 * width, 4 * width)
        for inputs, outputs in zip(sizes, sizes[1:]):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        last = nn.Conv2d(sizes[-1], 64, 3, padding=1)
        self.body = nn.Sequential(*layers, last, nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = nn.Linear(64, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, 32, 32) in [-1, 1] to a score a class."""
        return self.head(self.body(images))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(n, 3, 32, 32) in [-1, 1] to (n, 64)."""
        return torch.cat([self.body(part) for part in images.split(256)])

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of the images that are taken for their class."""
        scores = self.head(self.features(images))
        return (scores.argmax(1) == labels).double().mean().item()


def train_judge(steps: int = 250, batch: int = 64, seed: int = 0) -> Judge:
    """Teach a classifier real drawings, none of them twice."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    images, labels = drawings(steps * batch, 1000 + seed)
    for x, y in zip(images.split(batch), labels.split(batch)):
        optimizer.zero_grad()
        F.cross_entropy(judge(x), y).backward()
        optimizer.step()
    return judge.eval()


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Between normal distributions of the mean and covariance of features (n, d) and (m, d).

    ``|mx - my|^2 + tr(Cx + Cy - 2 (Cx Cy)^1/2)`` (Dowson and Landau, 1982).
    """
    means = [features.double().mean(0) for features in (x, y)]
    first, second = (features.double().T.cov().numpy() for features in (x, y))
    # The product of two covariances has real eigenvalues >= 0, up to rounding.
    roots = np.sqrt(np.linalg.eigvals(first @ second).real.clip(min=0)).sum()
    gap = (means[0] - means[1]).square().sum().item()
    return float(gap + np.trace(first) + np.trace(second) - 2 * roots)


def read_results(work_dir: Path) -> list[dict]:
    """Results of all finished runs, sorted by arm and seed."""
    return read_runs(work_dir.glob('*/seed-*.json'), list(ARMS), key='arm')


def ratios(results: Sequence[dict], arm: str, reference: str = REFERENCE) -> list[float]:
    """Validation MSE over that of another arm with the same seed, on the same noise."""
    mse = {(r['arm'], r['seed']): r['mse'] for r in results}
    seeds = [seed for name, seed in mse if name == arm and (reference, seed) in mse]
    return [mse[arm, seed] / mse[reference, seed] for seed in seeds]


def table(results: Sequence[dict]) -> str:
    """All arms in Markdown; what follows ± is half of a 95 % interval over the seeds."""
    head = ['arm', 'seeds', 'parameters', 'validation MSE', f'against {ARMS[REFERENCE].label}']
    head += ['accuracy', 'FD-CNN']
    lines = [head, ['---'] * len(head)]
    for name, arm in ARMS.items():
        runs = [r for r in results if r['arm'] == name]
        if not runs:
            continue
        paired = [] if name == REFERENCE else ratios(results, name)
        lines.append(
            [
                arm.label,
                str(len(runs)),
                str(runs[0]['parameters']),
                _spread([r['mse'] for r in runs], 4),
                _spread(paired, 3),
                _spread([r['accuracy'] for r in runs], 3),
                _spread([r['fd'] for r in runs], 2),
            ]
        )
    # What the metrics say of other drawings: no sample can be expected to do better.
    accuracy, distance = (
        mean(r[key] for r in results) for key in ('accuracy_of_real', 'fd_of_real')
    )
    lines.append(['real drawings', '', '', '', '', f'{accuracy:.3f}', f'{distance:.2f}'])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ''
    width = half_width(values)
    around = f' ± {width:.{digits}f}' if np.isfinite(width) else ''
    return f'{mean(values):.{digits}f}{around}'


def verdict(results: Sequence[dict], comparisons: int = 1) -> str:
    """The claim on the mirror that the results allow, and no more.

    Args:
        results (Sequence[dict]): From :func:`read_results`.
        comparisons (int): How many such verdicts are read together: the 95 % are of all of them
            (Bonferroni). Defaults to 1.
    """
    mirror = [r for r in results if r['arm'] == 'mirror']
    if not mirror or not ratios(results, 'mirror'):
        return ''
    accuracy, chance = mean(r['accuracy'] for r in mirror), 1 / len(CLASSES)
    obeys = 'obeys the class' if accuracy > 2 * chance else 'does not obey the class'
    ratio = mean(ratios(results, 'mirror'))
    sentence = (
        f'{ARMS["mirror"].label} {obeys} ({accuracy:.0%}, chance is {chance:.0%}), and its '
        f'validation loss is {ratio:.3f} times that of softmax.'
    )
    pairs = ratios(results, 'mirror', 'control')
    if not pairs:
        return sentence
    gap, width = mean(pairs) - 1, half_width(pairs, comparisons)
    told = 'can' if abs(gap) > width else 'cannot'
    together = f' for {comparisons} comparisons together' if comparisons > 1 else ''
    around = f'± {width:.1%}, 95 % over the seeds{together}' if np.isfinite(width) else 'one seed'
    return (
        f'{sentence} Against {ARMS["control"].label}, which differs in the mirror alone, the loss '
        f'is {gap:+.1%} ({around}), which {told} be told from chance.'
    )


def compare_grids(work_dir: Path, results: Sequence[dict], path: Path) -> None:
    """Draw what each arm drew with the first seed, a row a class, beside real drawings."""
    from matplotlib.figure import Figure
    from PIL import Image

    seed = min(r['seed'] for r in results)
    real, labels = drawings(COLUMNS * len(CLASSES), 99)
    real = (real[labels.argsort(stable=True)] + 1) * 127.5
    sheets = {'real': tile(to_uint8(real), COLUMNS)}
    for r in results:
        if r['seed'] == seed:
            sheet = np.asarray(Image.open(work_dir / r['arm'] / f'seed-{seed}.png'))
            sheets[ARMS[r['arm']].label] = sheet[:, : sheets['real'].shape[1]]
    figure = Figure(figsize=(3.2 * len(sheets), 2.9), layout='constrained')
    for axis, (label, sheet) in zip(figure.subplots(1, len(sheets)), sheets.items()):
        axis.imshow(sheet, interpolation='nearest')
        axis.set_title(label)
        axis.axis('off')
    save_figure(figure, path, dpi=130)
