"""Fine-tune every attention from DCTLSA's x4 weights and compare them in decibels.

Every finished run leaves one small file, and one that was stopped goes on at its last checkpoint,
so that the same command may be given again and again. Example:

    python tools/studies/super_resolution.py X4.pt --train data/coco/train2017 \\
        --test Set5=data/sr/Set5/HR CamVid=data/ade/images/validation \\
        --report docs/studies/super_resolution
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path

from mirrorla_mm.converters import convert_dctlsa, read_state_dict, write_checkpoint
from mirrorla_mm.engine.atomic import whole_file
from mirrorla_mm.engine.errors import UserError, one_line_errors
from mirrorla_mm.engine.prepare import prepare_training
from mirrorla_mm.engine.resuming import find_latest_checkpoint
from mirrorla_mm.restoration.datasets import SuperResolutionDataset
from mirrorla_mm.restoration.metrics import PSNR, to_uint8
from mirrorla_mm.restoration.study import ROWS, plot, read_results, table, verdict

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed
from rich.progress import track

CONFIG = 'configs/studies/dctlsa-study_x4_1xb4-3k_coco.py'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('weights', help="the authors' file that every row starts from")
    parser.add_argument('--config', default=CONFIG, help='the host and its schedule')
    parser.add_argument('--train', required=True, type=Path, help='folder of images to train on')
    parser.add_argument(
        '--test', nargs='+', required=True, metavar='NAME=FOLDER', help='images to test on'
    )
    parser.add_argument('--work-dir', default='work_dirs/study_sr', type=Path)
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS), metavar='ROW')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--iters', type=int, help="iterations of a run; the config's by default")
    parser.add_argument('--report', type=Path, help='folder for results.json, .md and .png')
    return parser.parse_args()


class FreezeReflections(Hook):
    """Leave the reflections at their random start."""

    def before_train(self, runner: Runner) -> None:
        for name, parameter in runner.model.named_parameters():
            if '.reflection.' in name:
                parameter.requires_grad_(False)


class Progress(Hook):
    """Says where the study stands, on one line, and where this part of it began."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.first = 0

    def before_train(self, runner: Runner) -> None:
        self.first = runner.iter

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.every_n_train_iters(runner, 50):
            loss = outputs['loss'].item()
            print(
                f'{self.label}: {runner.iter + 1}/{runner.max_iters}, loss {loss:.4f}', flush=True
            )


def run_config(args: argparse.Namespace, name: str, seed: int) -> Config:
    """The study's config with one row's attention, seed, data and length."""
    cfg = Config.fromfile(args.config)
    cfg.model.backbone.update(attn_cfg=ROWS[name].attn_cfg, **ROWS[name].host)
    cfg.work_dir = str(args.work_dir / name / f'seed-{seed}')
    cfg.experiment_name = cfg.visualizer.name = f'sr-{name}-seed-{seed}'
    cfg.randomness = dict(seed=seed)
    cfg.log_level = 'WARNING'
    cfg.train_dataloader.dataset.update(data_root=str(args.train.parent), gt_dir=args.train.name)
    for key in ('val_dataloader', 'val_evaluator', 'val_cfg'):
        cfg[key] = None
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        cfg[key] = None
    if args.iters:
        cfg.train_cfg.max_iters = cfg.param_scheduler.T_max = args.iters
    cfg.train_cfg.pop('val_interval', None)
    checkpoint = find_latest_checkpoint(cfg.work_dir)
    cfg.resume = checkpoint is not None
    cfg.load_from = checkpoint or warm_start(args.weights, cfg, seed)
    prepare_training(cfg)
    return cfg


def warm_start(weights: str, cfg: Config, seed: int) -> str:
    """Write the weights that a row starts from; what is its own is drawn by the seed."""
    set_random_seed(seed)
    file = Path(cfg.work_dir) / 'start.pth'
    write_checkpoint(convert_dctlsa(read_state_dict(weights), cfg.model.backbone), file)
    return str(file)


def run(args: argparse.Namespace, name: str, seed: int, label: str) -> dict:
    """Train and test one row with one seed."""
    runner = Runner.from_cfg(run_config(args, name, seed))
    progress = Progress(label)
    runner.register_hook(progress)
    if ROWS[name].frozen:
        runner.register_hook(FreezeReflections())
    start = time.time()
    runner.train()
    seconds = time.time() - start
    scale = runner.cfg.model.backbone.upscale
    return dict(
        row=name,
        seed=seed,
        iters=runner.max_iters,
        parameters=sum(p.numel() for p in runner.model.parameters()),
        PSNR={key: decibels(runner.model, folder, scale) for key, folder in tests(args).items()},
        seconds_per_iteration=round(seconds / max(runner.max_iters - progress.first, 1), 3),
        machine=torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f'{platform.machine()}, {torch.get_num_threads()} threads',
        torch=torch.__version__,
        date=date.today().isoformat(),
    )


def tests(args: argparse.Namespace) -> dict[str, Path]:
    """Folders of images to test on, by name."""
    if not all('=' in test for test in args.test):
        raise UserError('--test takes NAME=FOLDER, such as Set5=data/sr/Set5/HR.')
    return {name: Path(folder) for name, folder in (test.split('=', 1) for test in args.test)}


@torch.no_grad()
def decibels(model: torch.nn.Module, folder: Path, scale: int) -> dict[str, float]:
    """PSNR of each image of a folder, shrunk and enlarged again."""
    pipeline = [
        dict(type='mirrorla_mm.LoadImagePair'),
        dict(type='mirrorla_mm.PackRestorationInputs'),
    ]
    data = SuperResolutionDataset(scale, str(folder.parent), gt_dir=folder.name, pipeline=pipeline)
    metric, found = PSNR(), {}
    model.eval()
    for sample in track(data, f'Testing on {folder}', total=len(data)):
        batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
        result = model.test_step(batch)[0]
        images = (to_uint8(result.pred_img), to_uint8(result.gt_img))
        found[Path(result.gt_path).stem] = metric.measure(*images, dict(scale=scale))
    return found


def run_missing(args: argparse.Namespace) -> None:
    """Train what has no result yet, one run at a time."""
    todo = [(name, seed) for seed in args.seeds for name in args.rows]
    for number, (name, seed) in enumerate(todo, 1):
        path = args.work_dir / name / f'seed-{seed}.json'
        label = f'[{number}/{len(todo)}] {ROWS[name].label}, seed {seed}'
        if path.exists():
            print(f'{label}: done before')
            continue
        result = run(args, name, seed, label)
        with whole_file(path) as partial:
            partial.write_text(json.dumps(result, indent=1) + '\n')
        print(f'{label}: {result["seconds_per_iteration"]} s an iteration', flush=True)


def report(args: argparse.Namespace) -> None:
    """Table, verdict and, with ``--report``, the files."""
    results = read_results(args.work_dir)
    text = f'{table(results)}\n\n{verdict(results)}\n'
    print(f'\n{text}')
    if args.report is None:
        return
    args.report.mkdir(parents=True, exist_ok=True)
    (args.report / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    (args.report / 'results.md').write_text(text)
    plot(results, args.report / 'results.png')


def main() -> None:
    args = parse_args()
    with one_line_errors():
        tests(args)
        run_missing(args)
        report(args)


if __name__ == '__main__':
    main()
