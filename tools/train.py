"""Train a detector, a segmentor, a super-resolution or a diffusion model."""

import argparse

import mirrorla_mm  # noqa: F401  (registers the models and the safe checkpoint loader)
from mirrorla_mm.engine.amp import OUR_AMP, is_amp
from mirrorla_mm.engine.bad_data import POLICIES
from mirrorla_mm.engine.checkpoint import require_file
from mirrorla_mm.engine.checkpoint_fit import CheckpointFitHook, StartHook
from mirrorla_mm.engine.data import check_data
from mirrorla_mm.engine.errors import UserError, one_line_errors
from mirrorla_mm.engine.launch import (
    add_common_arguments,
    build_runner,
    is_first_process,
    load_config,
)
from mirrorla_mm.engine.memory import keep_freed_memory
from mirrorla_mm.engine.prepare import prepare_training
from mirrorla_mm.engine.resuming import checkpoint_for_all
from mirrorla_mm.engine.unused_parameters import name_unused_parameters
from mirrorla_mm.engine.work_dir import hold_work_dir

from mmengine.config import Config
from mmengine.runner import Runner


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate from the batch size of the config to the one in use',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this file or URL, or without a value from the latest in the work dir',
    )
    parser.add_argument(
        '--bad-data',
        choices=POLICIES,
        default='refuse',
        help='stop at an image or label that cannot be trusted, or leave it out and report it',
    )
    parser.add_argument(
        '--min-loaded',
        type=float,
        default=0.2,
        metavar='SHARE',
        help='refuse a load_from or a pretrained part that fills less of its weights (0 to 1)',
    )
    parser.add_argument(
        '--keep-freed-memory',
        action='store_true',
        help='on a CPU with glibc: keep freed memory for the next step, which then starts sooner',
    )
    add_common_arguments(parser)
    return parser.parse_args()


def enable_amp(cfg: Config) -> None:
    """Switch the config to mixed precision, with dynamic loss scaling."""
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind != 'OptimWrapper' and not is_amp(kind):
        raise UserError(f'--amp needs optim_wrapper.type OptimWrapper, the config has {kind}.')
    cfg.optim_wrapper.type = OUR_AMP
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def enable_auto_scale_lr(cfg: Config) -> None:
    """Let the runner scale the learning rate by the batch size."""
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise UserError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config.')
    cfg.auto_scale_lr.enable = True


def resume_from(cfg: Config, checkpoint: str) -> str | None:
    """Set the checkpoint to resume from; where there is none yet, training starts afresh."""
    if checkpoint == 'auto':
        checkpoint = checkpoint_for_all(cfg)
    cfg.resume = checkpoint is not None
    if checkpoint:
        require_file(checkpoint)
        cfg.load_from = checkpoint
    return checkpoint


def build(args: argparse.Namespace) -> Runner:
    """Build the runner that the command line asks for."""
    cfg = load_config(args, ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'))
    if args.amp:
        enable_amp(cfg)
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg)
    if is_first_process(cfg.launcher):
        hold_work_dir(cfg.work_dir)
    wanted = args.resume or ((cfg.get('load_from') or 'auto') if cfg.get('resume') else None)
    checkpoint = resume_from(cfg, wanted) if wanted else None
    check_data(cfg, ('train_dataloader', 'val_dataloader', 'val_evaluator'))
    prepare_training(cfg, args.bad_data)
    runner = build_runner(cfg)
    if wanted and not checkpoint:
        runner.logger.warning(
            f'There is no checkpoint in {cfg.work_dir} to resume from: training starts afresh.'
        )
    if checkpoint:
        runner.register_hook(CheckpointFitHook(checkpoint))
    else:
        runner.register_hook(StartHook(args.min_loaded))
    return runner


def main() -> None:
    """Train."""
    args = parse_args()
    with one_line_errors():
        if args.keep_freed_memory and not keep_freed_memory():
            raise UserError(
                'This C library refuses --keep-freed-memory: leave it out, or use a newer glibc.'
            )
        runner = build(args)
        with name_unused_parameters(runner):
            runner.train()


if __name__ == '__main__':
    main()
