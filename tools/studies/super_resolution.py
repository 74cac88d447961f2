"""Train every attention in DCTLSA alike, and compare them in decibels.

With the authors' x4 weights every row starts from them, what is a row's own is drawn by the seed;
without them all rows of a seed start from the same random host. With --transfer the attention of a
row first learns, module by module, what the authors' attention puts out. Every finished run leaves
a small file in the report's folder, and one that was stopped goes on at its last checkpoint, so
that the same command may be given again and again, with more seeds too. Example:

    python tools/studies/super_resolution.py X4.pt \\
        --train data/coco/train2017 data/coco/val2017 \\
        --test Set5=data/sr/Set5/HR CamVid=data/ade/images/validation:128x256 \\
        --report work_dirs/study_sr/report
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirrorla_mm.analysis.study_runs import Progress, SameHost, keep_study, run_missing
from mirrorla_mm.converters import Converted, convert_dctlsa, read_state_dict, write_checkpoint
from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.atomic import whole_file
from mirrorla_mm.engine.configs import ConfigOptions, read_config
from mirrorla_mm.engine.errors import UserError, one_line_errors
from mirrorla_mm.engine.prepare import prepare_training
from mirrorla_mm.engine.settings import digest, file_digest, refuse_others
from mirrorla_mm.restoration.datasets import SuperResolutionDataset
from mirrorla_mm.restoration.metrics import PSNR, to_uint8
from mirrorla_mm.restoration.study import (
    BASELINE,
    ROWS,
    TEACHER,
    after_transfer,
    plot,
    read_results,
    slot_facts,
    table,
    verdict,
)
from mirrorla_mm.restoration.transfer import explained

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from rich.progress import track

CONFIG = 'configs/studies/dctlsa-study_x4_1xb4-3k_coco.py'
TRANSFER_LR = 3e-3
PREFIX = 'backbone.'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'weights',
        nargs='?',
        help="the authors' file that every row starts from; without it, random weights",
    )
    parser.add_argument('--config', default=CONFIG, help='the host and its schedule')
    parser.add_argument('--train', nargs='+', type=Path, help='folders of images to train on')
    parser.add_argument(
        '--test',
        nargs='+',
        metavar='NAME=FOLDER[:HxW]',
        help='images to test on, or of each the middle of H x W pixels',
    )
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS), metavar='ROW')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument(
        '--iters', type=positive_int, help="iterations of a run; the config's by default"
    )
    parser.add_argument(
        '--transfer',
        type=int,
        default=0,
        metavar='ITERS',
        help="iterations in which the attention learns what the authors' puts out, before it is "
        'trained with the host; none by default',
    )
    parser.add_argument(
        '--bf16', action='store_true', help='train with products in bfloat16, sums in float32'
    )
    parser.add_argument('--work-dir', default='work_dirs/study_sr', type=Path, help='checkpoints')
    parser.add_argument(
        '--report',
        type=Path,
        default=Path('work_dirs/study_sr/report'),
        help='folder for runs/, results.md and results.png; runs that lie there are not repeated',
    )
    parser.add_argument('--report-only', action='store_true', help='train nothing')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, help='further settings of the config'
    )
    return parser.parse_args()


class FreezeReflections(Hook):
    """Leave the reflections at their random start."""

    def before_train(self, runner: Runner) -> None:
        for name, parameter in runner.model.named_parameters():
            if '.reflection.' in name:
                parameter.requires_grad_(False)


def study_config(args: argparse.Namespace) -> Config:
    """The config that all runs share."""
    cfg = read_config(args.config, args.cfg_options)
    cfg.train_dataloader.dataset.update(
        data_root='', gt_dir='.', sets=[str(folder.resolve()) for folder in args.train]
    )
    for kind in ('val', 'test'):
        for part in ('dataloader', 'evaluator', 'cfg'):
            cfg[f'{kind}_{part}'] = None
    cfg.train_cfg.pop('val_interval', None)
    cfg.log_level = 'WARNING'
    if args.iters:
        cfg.train_cfg.max_iters = cfg.param_scheduler.T_max = args.iters
    return cfg


def settings(args: argparse.Namespace, cfg: Config) -> dict:
    """Settings that runs need to share to be compared."""
    loader = cfg.train_dataloader
    crops = [t['size'] for t in loader.dataset.pipeline if t['type'].endswith('PairedRandomCrop')]
    return dict(
        start='authors' if args.weights else 'random',
        weights=file_digest(args.weights) if args.weights else None,
        config=digest(read_config(args.config, args.cfg_options).to_dict()),
        own='by seed',  # a row's own parameters; runs without this drew them alike for all seeds
        transfer=args.transfer,
        iters=cfg.train_cfg.max_iters,
        batch=loader.batch_size,
        crop=crops[0] if crops else None,
        lr=cfg.optim_wrapper.optimizer.lr,
        products='bfloat16' if args.bf16 else 'float32',
        train=[folder.name for folder in args.train],
        test={name: crop for name, (_, crop) in tests(args).items()},
    )


def row_config(args: argparse.Namespace, name: str, seed: int, part: str = '') -> Config:
    """The study's config with one row's attention and seed, in a folder of its own."""
    cfg = study_config(args)
    cfg.model.backbone.update(attn_cfg=ROWS[name].attn_cfg, **ROWS[name].host)
    cfg.work_dir = str(args.work_dir / name / f'seed-{seed}' / part)
    cfg.experiment_name = cfg.visualizer.name = f'sr-{name}-seed-{seed}{part}'
    cfg.randomness = dict(seed=seed)
    cfg.resume = True
    return cfg


def start_of(cfg: Config) -> Path:
    """The file of the weights that a training starts from."""
    return Path(cfg.work_dir) / 'start.pth'


def keep_authors_weights(args: argparse.Namespace, cfg: Config) -> None:
    """Let a row start from the authors' weights; what is its own is drawn by the seed."""
    weights = read_state_dict(args.weights)
    converted = convert_dctlsa(weights, cfg.model.backbone, cfg.randomness.seed)
    write_checkpoint(converted, start_of(cfg))


def pretrained(cfg: Config) -> dict:
    """The host of a config, with the weights that it starts from."""
    start = dict(type='Pretrained', checkpoint=str(start_of(cfg)), prefix=PREFIX)
    return dict(cfg.model.backbone, init_cfg=start)


def transfer(args: argparse.Namespace, name: str, seed: int, label: str) -> None:
    """Let a row's attention learn what the authors' puts out, and the row start from that."""
    row, teacher = (row_config(args, each, seed) for each in (name, TEACHER))
    keep_authors_weights(args, teacher)
    if start_of(row).exists():
        return
    cfg = row_config(args, name, seed, 'transfer')
    keep_authors_weights(args, cfg)
    cfg.model = dict(
        type='mirrorla_mm.SlotTransfer', teacher=pretrained(teacher), backbone=pretrained(cfg)
    )
    cfg.optim_wrapper.optimizer.lr = TRANSFER_LR
    cfg.train_cfg.max_iters = cfg.param_scheduler.T_max = args.transfer
    student = train(args, cfg, name, Progress(label)).backbone
    weights = {PREFIX + key: value for key, value in student.state_dict().items()}
    write_checkpoint(Converted(weights, row.model.backbone), start_of(row))


def train(args: argparse.Namespace, cfg: Config, name: str, progress: Progress) -> BaseModel:
    """Train by a row's config, from its last checkpoint on where there is one."""
    prepare_training(cfg)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(progress)
    if not args.weights:
        reference = study_config(args).model
        reference.backbone.attn_cfg = ROWS[BASELINE].attn_cfg
        runner.register_hook(SameHost(reference))
    if ROWS[name].frozen:
        runner.register_hook(FreezeReflections())
    with bfloat16_products(args.bf16):
        runner.train()
    return runner.model.eval()


@contextmanager
def bfloat16_products(wanted: bool) -> Iterator[None]:
    """Let a processor round the factors of float32 products; on a GPU mmengine's AMP does that.

    Raises:
        UserError: If this torch cannot.
    """
    if not hasattr(torch.backends.mkldnn, 'matmul'):
        if wanted:
            raise UserError(f'--bf16 needs torch 2.9 or newer, and this is {torch.__version__}.')
        yield
        return
    backends = (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = 'bf16' if wanted else 'ieee'
        yield
    finally:
        for backend, precision in zip(backends, before):
            backend.fp32_precision = precision


def run(args: argparse.Namespace, name: str, seed: int, label: str) -> dict:
    """Train and test one row with one seed."""
    cfg = row_config(args, name, seed)
    if args.transfer and name != TEACHER:
        transfer(args, name, seed, f'{label}, transfer')
    elif args.weights:
        keep_authors_weights(args, cfg)
    if args.weights:
        cfg.model.backbone = pretrained(cfg)
    progress = Progress(label)
    model = train(args, cfg, name, progress)
    result = dict(
        row=name,
        seed=seed,
        settings=settings(args, study_config(args)),
        parameters=sum(p.numel() for p in model.parameters()),
        **quality(args, model),
        seconds_per_iteration=progress.seconds and round(progress.seconds, 3),
    )
    if args.transfer:
        result['transfer'] = transferred(args, name, seed)
    return result


def quality(args: argparse.Namespace, model: BaseModel) -> dict:
    """Decibels of each image, and what can be said of the attention."""
    scale = model.backbone.upscale
    sets = {key: load_tests(*test, scale) for key, test in tests(args).items()}
    return dict(
        PSNR={key: decibels(model, data, key, scale) for key, data in sets.items()},
        **slot_facts(model.backbone, inputs_of(next(iter(sets.values())))),
    )


def transferred(args: argparse.Namespace, name: str, seed: int) -> dict:
    """What can be said of a row as its transfer left it, and how much the attention has learned."""
    models = []
    for row in (name, TEACHER):
        cfg = row_config(args, row, seed)
        cfg.model.backbone = pretrained(cfg)
        models.append(MODELS.build(cfg.model).eval())
        models[-1].init_weights()
    model, teacher = models
    images = inputs_of(load_tests(*next(iter(tests(args).values())), model.backbone.upscale))
    share = explained(teacher.backbone, model.backbone, images)
    return dict(quality(args, model), explained=share)


def tests(args: argparse.Namespace) -> dict[str, tuple[Path, list[int] | None]]:
    """Folders of images to test on, and what size of each, by name."""
    found = {}
    for test in args.test:
        match = re.fullmatch(r'([^=]+)=(.+?)(?::(\d+)x(\d+))?', test)
        if not match:
            raise UserError(
                f'--test takes NAME=FOLDER or NAME=FOLDER:HxW, such as Set5=data/sr/Set5/HR, '
                f'not {test}.'
            )
        found[match[1]] = Path(match[2]), match[3] and [int(match[3]), int(match[4])]
    return found


def load_tests(folder: Path, crop: list[int] | None, scale: int) -> SuperResolutionDataset:
    """Each image of a folder, shrunk, or the middle of both."""
    pipeline = [
        dict(type='mirrorla_mm.LoadImagePair'),
        dict(type='mirrorla_mm.PackRestorationInputs'),
    ]
    if crop:
        size = [n // scale for n in crop]
        pipeline.insert(1, dict(type='mirrorla_mm.PairedCenterCrop', size=size))
    return SuperResolutionDataset(
        scale, str(folder.resolve().parent), gt_dir=folder.resolve().name, pipeline=pipeline
    )


@torch.no_grad()
def decibels(
    model: torch.nn.Module, data: SuperResolutionDataset, name: str, scale: int
) -> dict[str, float]:
    """PSNR of each image, enlarged again."""
    metric, found = PSNR(), {}
    for sample in track(data, f'Testing on {name}', total=len(data)):
        batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
        result = model.test_step(batch)[0]
        images = (to_uint8(result.pred_img), to_uint8(result.gt_img))
        figure = metric.measure(*images, dict(scale=scale))
        found[Path(result.gt_path).stem] = round(figure, 5)
    return found


def inputs_of(data: SuperResolutionDataset, count: int = 2) -> list[torch.Tensor]:
    """The first images of a data set, as the host takes them."""
    return [data[i]['inputs'][None] / 255 for i in range(min(count, len(data)))]


def file_of(args: argparse.Namespace, name: str, seed: int) -> Path:
    return args.report / 'runs' / f'{name}_seed-{seed}.json'


def check_tests(args: argparse.Namespace) -> None:
    """Read an image of each test set now, not after hours of training."""
    scale = MODELS.build(study_config(args).model.backbone).upscale
    for folder, crop in tests(args).values():
        load_tests(folder, crop, scale)[0]


def check_transfer(args: argparse.Namespace) -> None:
    """Refuse at once what a transfer would stop at after hours."""
    if not args.transfer:
        return
    if args.transfer < 0:
        raise UserError(f'--transfer takes a number of iterations, not {args.transfer}.')
    if not args.weights:
        raise UserError("--transfer needs the authors' weights: give their file, or leave it out.")
    crop = settings(args, study_config(args))['crop']
    for name in args.rows:
        side = MODELS.build(row_config(args, name, 0).model.backbone).window_size
        if crop and crop % side:
            raise UserError(
                f'--transfer takes crops of a multiple of the windows, and those of {name} are '
                f'{side}, not a part of {crop}: set train_dataloader.dataset.pipeline.1.size by '
                '--cfg-options, or leave out the row.'
            )


def check_settings(args: argparse.Namespace) -> None:
    """Refuse to set runs beside others that were made otherwise."""
    wanted = settings(args, study_config(args))
    results = read_results(args.report / 'runs')
    for result in results:
        file = file_of(args, result['row'], result['seed'])
        refuse_others(result['settings'], wanted, file, 'name another --report')
    agreed = [args.work_dir / result['row'] / f'seed-{result["seed"]}' for result in results]
    keep_study(args.work_dir, wanted, agreed)


def report(args: argparse.Namespace) -> None:
    """Table, verdict and plot of the runs there are."""
    results = read_results(args.report / 'runs')
    if not results:
        raise UserError(f'No finished run is in {args.report / "runs"}.')
    text = section(results)
    before = after_transfer(results)
    if before:
        text = f'## After the transfer\n\n{section(before)}\n## At the end\n\n{text}'
        plot(before, args.report / 'after_transfer.png')
    print(f'\n{text}')
    with whole_file(args.report / 'results.md') as partial:
        partial.write_text(f'# Results of the study\n\n{text}', encoding='utf-8')
    plot(results, args.report / 'results.png')


def section(results: list[dict]) -> str:
    return f'{table(results)}\n\n{verdict(results)}\n'


@one_line_errors()
def main() -> None:
    args = parse_args()
    if not args.report_only:
        if not args.train or not args.test:
            raise UserError('--train and --test are needed, or --report-only.')
        check_tests(args)
        check_transfer(args)
        check_settings(args)
        run_missing(
            [(name, seed) for seed in args.seeds for name in args.rows],
            lambda name, seed: file_of(args, name, seed),
            lambda name: ROWS[name].label,
            lambda name, seed, label: run(args, name, seed, label),
        )
    report(args)


if __name__ == '__main__':
    main()
