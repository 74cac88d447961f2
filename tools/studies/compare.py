"""Compare attentions in one small host on real images: same schedule, same seeds.

Every finished run leaves one small file, and one that was stopped goes on at its last checkpoint,
so that the same command may be given again and again. Example:

    python tools/studies/compare.py --data-root data/ade --rows relu relu-mirror \\
        --report docs/studies/camvid
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path

from mirrorla_mm.analysis.study import (
    ROWS,
    ordering,
    plot,
    read_results,
    results_table,
    scores_of,
)
from mirrorla_mm.analysis.study_runs import Progress, SameHost, keep_study, run_missing
from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.atomic import whole_file
from mirrorla_mm.engine.configs import read_config
from mirrorla_mm.engine.errors import UserError, one_line_errors
from mirrorla_mm.engine.prepare import prepare_training
from mirrorla_mm.engine.settings import digest

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

CONFIG = 'configs/studies/ravlt-study_efficientvit-head_1xb8-200_camvid-96x96.py'
REFERENCE = 'relu'
TABLES = ('Tab. 7', 'Tab. 8')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', default=CONFIG, help='the host and its schedule')
    parser.add_argument('--data-root', help="images and annotations in ADE20K's layout")
    parser.add_argument('--work-dir', default='work_dirs/study', type=Path)
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS), metavar='ROW')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument(
        '--iters', type=positive_int, help="iterations of a run; the config's by default"
    )
    parser.add_argument(
        '--report', type=Path, help='folder for results.json, results.md, results.png'
    )
    parser.add_argument('--report-only', action='store_true', help='train nothing')
    return parser.parse_args()


def settings(args: argparse.Namespace) -> dict:
    """Settings that runs need to share to be compared."""
    cfg = read_config(args.config)
    return dict(
        iters=args.iters or cfg.train_cfg.max_iters,
        data=Path(args.data_root or cfg.train_dataloader.dataset.data_root).resolve(),
        config=digest(cfg.to_dict()),
    )


def run_config(args: argparse.Namespace, name: str, seed: int) -> Config:
    """The study's config with one row's attention, seed, data and length."""
    cfg = read_config(args.config)
    cfg.model.backbone.attn_cfg = ROWS[name].attn_cfg
    cfg.randomness = dict(seed=seed)
    cfg.work_dir = str(args.work_dir / name / f'seed-{seed}')
    cfg.experiment_name = f'{name}-seed-{seed}'
    cfg.visualizer.name = cfg.experiment_name
    cfg.log_level = 'WARNING'
    if args.data_root:
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.dataset.data_root = args.data_root
    if args.iters:
        warm_up = cfg.param_scheduler[-1].begin
        if args.iters <= warm_up:
            raise UserError(
                f'--iters {args.iters} ends within the warm-up of {warm_up} iterations: take more.'
            )
        cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = args.iters
        cfg.param_scheduler[-1].end = args.iters
    prepare_training(cfg)
    return cfg


class Scores(Hook):
    """Keeps what the last validation of this sitting found."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep it."""
        self.metrics = metrics or {}


def run(args: argparse.Namespace, name: str, seed: int, label: str) -> dict:
    """Train and evaluate one row with one seed."""
    cfg = run_config(args, name, seed)
    reference = copy.deepcopy(cfg.model)
    reference.backbone.attn_cfg = ROWS[REFERENCE].attn_cfg
    runner = Runner.from_cfg(cfg)
    runner.register_hook(SameHost(reference))
    runner.register_hook(Progress(label))
    scores = Scores()
    runner.register_hook(scores)
    start = time.time()
    runner.train()
    if not scores.metrics:  # The training was stopped after its last checkpoint.
        runner.val_loop.run()
    return dict(
        row=name,
        seed=seed,
        iters=runner.max_iters,
        mIoU=float(scores.metrics['mIoU']),
        aAcc=float(scores.metrics['aAcc']),
        parameters=sum(p.numel() for p in runner.model.parameters()),
        seconds=round(time.time() - start),
    )


def report(args: argparse.Namespace) -> None:
    """Table, verdict and, with ``--report``, the files."""
    results = read_results(args.work_dir)
    if not results:
        raise SystemExit(f'No finished run under {args.work_dir}: run the study first.')
    scores = scores_of(results)
    verdicts = [ordering(scores, table) for table in TABLES]
    text = '\n\n'.join([results_table(results), *verdicts])
    print('\n' + text)
    if args.report is None:
        return
    page = f'# Results of the study\n\n{text}\n'
    content = json.dumps(results, indent=1) + '\n'
    for name, written in (('results.json', content), ('results.md', page)):
        with whole_file(args.report / name) as partial:
            partial.write_text(written, encoding='utf-8')
    plot(
        results,
        args.report / 'results.png',
        f'{Path(args.config).stem}, {results[0]["iters"]} iterations',
    )


def main() -> int:
    args = parse_args()
    with one_line_errors():
        if not args.report_only:
            keep_study(args.work_dir, settings(args))
            run_missing(
                [(name, seed) for name in args.rows for seed in args.seeds],
                lambda name, seed: args.work_dir / name / f'seed-{seed}.json',
                lambda name: ROWS[name].label,
                lambda name, seed, label: run(args, name, seed, label),
            )
        report(args)
    return 0


if __name__ == '__main__':
    sys.exit(main())
