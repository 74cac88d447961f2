"""Train four attentions in one small diffusion transformer on drawn shapes, and compare them.

Every finished run leaves one small file, and one that was stopped goes on at its last checkpoint,
so that the same command may be given again and again. Nothing is downloaded. Example:

    python tools/studies/diffusion.py --report docs/studies/diffusion
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mirrorla_mm.analysis.study_runs import Progress, keep_study, run_missing
from mirrorla_mm.diffusion.model import DiffusionModel
from mirrorla_mm.diffusion.sampling import NoiseStreams, save_grid, to_uint8
from mirrorla_mm.diffusion.shapes import CLASSES
from mirrorla_mm.diffusion.study import (
    ARMS,
    COLUMNS,
    REFERENCE,
    Judge,
    compare_grids,
    drawings,
    frechet_distance,
    read_results,
    table,
    train_judge,
    verdict,
)
from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.atomic import whole_file
from mirrorla_mm.engine.checkpoint import load_checkpoint_file
from mirrorla_mm.engine.configs import read_config
from mirrorla_mm.engine.errors import UserError, one_line_errors
from mirrorla_mm.engine.prepare import prepare_training
from mirrorla_mm.engine.settings import digest

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner, set_random_seed
from torch import Tensor

CONFIG = 'configs/studies/dit-study_1xb16-400_shapes-32x32.py'
SPREAD = 'What follows ± is half of a 95 % interval over the seeds, of each figure alone.'
HELD_OUT = 7  # Seed of the drawings that no training sees.


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', default=CONFIG, help='the host and its schedule')
    parser.add_argument('--work-dir', default='work_dirs/study_diffusion', type=Path)
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS), metavar='ARM')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument(
        '--iters', type=positive_int, help="iterations of a run; the config's by default"
    )
    parser.add_argument(
        '--samples', type=positive_int, default=120, help='images that each run draws'
    )
    parser.add_argument(
        '--report', type=Path, help='folder for results.json, results.md and the grids'
    )
    parser.add_argument(
        '--comparisons',
        type=positive_int,
        default=1,
        help='verdicts that are read together with this one',
    )
    parser.add_argument('--report-only', action='store_true', help='train nothing')
    return parser.parse_args()


class SameStart(Hook):
    """Starts every arm of a seed from the same weights wherever arms have them in common.

    Of a projection with a gate softmax has the rows of q, k and v, the control all of them.

    Args:
        models (Sequence[dict]): Configs of the arms whose weights all arms start from; the later
            ones go over the earlier ones.
    """

    def __init__(self, models: Sequence[dict]) -> None:
        self.models = models

    def before_train(self, runner: Runner) -> None:
        """Copy the weights, unless the run is a resumed one."""
        if runner.iter > 0:
            return
        own = runner.model.state_dict()
        for model in self.models:
            set_random_seed(runner.seed)
            for name, value in MODELS.build(model).state_dict().items():
                if name in own:
                    rows = min(len(own[name]), len(value))
                    own[name][:rows].copy_(value[:rows])


def model_config(args: argparse.Namespace, name: str) -> ConfigDict:
    """The study's host with one arm's attention."""
    model = read_config(args.config).model
    model.backbone.attn_cfg = ARMS[name].attn_cfg
    return model


def run_config(args: argparse.Namespace, name: str, seed: int) -> Config:
    """The study's config with one arm's attention, seed and length."""
    cfg = read_config(args.config)
    cfg.model = model_config(args, name)
    cfg.work_dir = str(args.work_dir / name / f'seed-{seed}')
    cfg.experiment_name = cfg.visualizer.name = f'dit-{name}-seed-{seed}'
    cfg.randomness = dict(seed=seed)
    cfg.log_level = 'WARNING'
    if args.iters:
        cfg.train_cfg.max_iters = cfg.param_scheduler.T_max = args.iters
    cfg.resume = True
    prepare_training(cfg)
    return cfg


def run(args: argparse.Namespace, judge: Judge, name: str, seed: int, label: str) -> dict:
    """Train and judge one arm with one seed."""
    runner = Runner.from_cfg(run_config(args, name, seed))
    runner.register_hook(Progress(label, interval=50))
    runner.register_hook(SameStart([model_config(args, arm) for arm in ('control', REFERENCE)]))
    runner.train()
    ema = next(hook for hook in runner.hooks if isinstance(hook, EMAHook))
    model = ema.ema_model.module.eval()
    images, labels = draw(model, args.samples, seed)
    grid = args.work_dir / name / f'seed-{seed}.png'
    save_grid(to_uint8(images), grid, columns=len(images) // len(CLASSES))
    images = images / 127.5 - 1
    reference, _ = drawings(1200, HELD_OUT + 1)
    others, classes = drawings(args.samples, HELD_OUT + 2)
    features = [judge.features(x) for x in (images, others, reference)]
    return dict(
        arm=name,
        seed=seed,
        iters=runner.max_iters,
        parameters=sum(p.numel() for p in model.parameters()),
        mse=frozen_error(model),
        accuracy=judge.accuracy(images, labels),
        accuracy_of_real=judge.accuracy(others, classes),
        fd=frechet_distance(features[0], features[2]),
        fd_of_real=frechet_distance(features[1], features[2]),
        samples=args.samples,
    )


@torch.no_grad()
def frozen_error(model: DiffusionModel, number: int = 256) -> float:
    """Mean square error on images, times and noise that are the same for every arm and seed."""
    device = next(model.parameters()).device
    x, labels = drawings(number, HELD_OUT)
    generator = torch.Generator().manual_seed(HELD_OUT)
    noise = torch.randn(x.shape, generator=generator)
    t = (torch.arange(number) + torch.rand(number, generator=generator)) / number
    errors = [
        model.process.errors(lambda x, t, y=y: model.backbone(x, t, y), x, t, noise)
        for x, y, t, noise in zip(*(v.to(device).split(64) for v in (x, labels, t, noise)))
    ]
    return torch.cat(errors).mean().item()


def draw(model: DiffusionModel, number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images in 0..255, the classes in order; all arms start from the same noise."""
    device = next(model.parameters()).device
    labels = torch.arange(len(CLASSES)).repeat_interleave(number // len(CLASSES))
    parts = []
    for first in range(0, len(labels), 64):
        part = labels[first : first + 64]
        noise = NoiseStreams(seed, range(first, first + len(part)), model.backbone.in_shape, device)
        parts.append(model.sample(part.to(device), noise).cpu())
    return torch.cat(parts).clamp(0, 255).round(), labels


def ready_judge(work_dir: Path) -> Judge:
    """The classifier, taught once for all runs."""
    file = work_dir / 'judge.pth'
    if not file.exists():
        print('Teaching the classifier real drawings ...', flush=True)
        with whole_file(file) as partial:
            torch.save(train_judge().state_dict(), partial)
    judge = Judge().eval()
    judge.load_state_dict(load_checkpoint_file(file))
    return judge


def check_settings(args: argparse.Namespace) -> None:
    """Make sure that the grid can be filled and that runs of other settings are not mixed in.

    Raises:
        UserError: If there are too few samples, or the folder holds runs of other settings.
    """
    fewest = COLUMNS * len(CLASSES)
    if args.samples < fewest:
        raise UserError(f'--samples needs to be {fewest} at least, got {args.samples}.')
    cfg = read_config(args.config)
    settings = dict(
        iters=args.iters or cfg.train_cfg.max_iters,
        samples=args.samples,
        config=digest(cfg.to_dict()),
    )
    keep_study(args.work_dir, settings)


def report(args: argparse.Namespace) -> None:
    """Table, verdict and, with ``--report``, the files."""
    results = read_results(args.work_dir)
    if not results:
        raise UserError(f'No finished run under {args.work_dir}: run the study first.')
    text = f'{table(results)}\n\n{verdict(results, args.comparisons)}\n'
    print(f'\n{text}')
    if args.report is None:
        return
    page = f'# Results of the study\n\n{SPREAD}\n\n{text}'
    content = json.dumps(results, indent=1) + '\n'
    for name, written in (('results.json', content), ('results.md', page)):
        with whole_file(args.report / name) as partial:
            partial.write_text(written, encoding='utf-8')
    compare_grids(args.work_dir, results, args.report / 'samples.png')


def main() -> None:
    args = parse_args()
    with one_line_errors():
        if not args.report_only:
            check_settings(args)
            judge = ready_judge(args.work_dir)
            run_missing(
                [(name, seed) for seed in args.seeds for name in args.arms],
                lambda name, seed: args.work_dir / name / f'seed-{seed}.json',
                lambda name: ARMS[name].label,
                lambda name, seed, label: run(args, judge, name, seed, label),
            )
        report(args)


if __name__ == '__main__':
    main()
