"""Study of what linearising keeps of a trained model: arms, steps and seeds on drawn scenes.

A segmentor with softmax attention in stages 3 and 4 is trained. Each arm replaces that attention:
copied weights alone, then attention transfer, then a short fine-tuning. Against it stand the same
linear model trained from scratch, or fine-tuned without a transfer, for as many iterations, and the
softmax model itself, trained on for as long. Finished parts are kept, so that the same command may
be given again and again. Example:

    python tools/studies/linearise.py --report docs/studies/linearise
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from statistics import mean

import mirrorla_mm  # noqa: F401  (registers the models and the safe checkpoint loader)
from mirrorla_mm.analysis.provenance import provenance
from mirrorla_mm.analysis.study import mean_and_spread
from mirrorla_mm.analysis.study_runs import keep_study
from mirrorla_mm.demo.dataset import Recipe, draw_dataset
from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.atomic import whole_file
from mirrorla_mm.engine.configs import read_config
from mirrorla_mm.engine.errors import one_line_errors
from mirrorla_mm.engine.figures import save_figure
from mirrorla_mm.engine.launch import build_runner
from mirrorla_mm.engine.linearise import linear_config
from mirrorla_mm.engine.linearise_stages import Linearisation, named, shorten
from mirrorla_mm.engine.prepare import prepare_training
from mirrorla_mm.engine.resuming import find_latest_checkpoint
from mirrorla_mm.engine.settings import digest

import mmengine.config.config as mmengine_config
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

CONFIG = 'configs/studies/linearise-study_efficientvit-head_1xb4-8e_demo-96x96.py'
STAGES = (3, 4)
ARMS = {
    'ReLU': dict(type='ReLUAttention'),
    'mirror': dict(type='MirrorAttention'),
    'NP-Map': dict(type='STILLAttention', window=1, top_k=0),
    'STILL': dict(type='STILLAttention', window=3, top_k=1),
}
# States of an arm, as the table names them.
STATES = ('copied', 'transferred', 'fine-tuned', 'without transfer', 'from scratch')
SHOWN_ERROR = 1e-3
TEACHER, HYBRID = 'softmax teacher', 'softmax, trained on'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', default=CONFIG, help='the softmax model')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/linearise-study'))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS), metavar='ARM')
    parser.add_argument('--teacher-iters', type=positive_int, default=300)
    parser.add_argument(
        '--iters', type=positive_int, default=40, help='of the transfer, and of the fine-tuning'
    )
    parser.add_argument(
        '--scenes', type=positive_int, nargs=2, default=[160, 40], help='to train and test'
    )
    parser.add_argument('--report', type=Path, help='folder for results.json, .md and .png')
    parser.add_argument('--report-only', action='store_true', help='train nothing')
    return parser.parse_args()


class Study:
    """One work dir of finished parts."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        train, val = args.scenes
        self.recipe = Recipe(size=96, train=train, val=val)
        self.scenes = args.work_dir.resolve() / 'scenes'
        self.provenance = provenance()
        self.file = args.work_dir / 'results.json'
        self.results: dict[str, dict] = {}
        if self.file.is_file():
            self.results = json.loads(self.file.read_text('utf-8'))

    @cached_property
    def settings(self) -> dict:
        """Settings that all parts share; scenes are those of the work dir, wherever that lies."""
        return dict(
            iters=[self.args.teacher_iters, self.args.iters],
            recipe=asdict(self.recipe),
            config=digest(read_config(self.args.config, dict(data_root='scenes/')).to_dict()),
        )

    def run(self) -> None:
        """Do all that is missing; what answers most comes first."""
        keep_study(self.args.work_dir, self.settings)
        draw_dataset(self.scenes, self.recipe)
        for seed in self.args.seeds:
            self.part(f'{TEACHER}/{seed}', lambda seed=seed: self.train_teacher(seed))
            for arm in self.args.arms:
                self.part(f'{arm}/{seed}', lambda arm=arm, seed=seed: self.convert(arm, seed))
            self.part(f'{HYBRID}/{seed}', lambda seed=seed: self.train_on(seed))
            for arm in self.args.arms:
                name = f'{arm}, from scratch/{seed}'
                self.part(name, lambda arm=arm, seed=seed: self.from_scratch(arm, seed))
        for seed in self.args.seeds:
            for arm in self.args.arms:
                name = f'{arm}, without transfer/{seed}'
                self.part(name, lambda arm=arm, seed=seed: self.without_transfer(arm, seed))

    def part(self, name: str, work: Callable[[], dict]) -> None:
        """Do one part, unless it is done, and keep what it gives."""
        if name in self.results:
            return
        start = time.time()
        result = work()
        self.results[name] = dict(
            result,
            seconds=round(time.time() - start),
            **self.provenance,
            **self.settings,
        )
        with whole_file(self.file) as partial:
            partial.write_text(json.dumps(self.results, indent=1) + '\n', encoding='utf-8')
        print(f'{name}: {result["mIoU"]} in {self.results[name]["seconds"]} s', flush=True)

    # --- Parts ----------------------------------------------------------------------------------

    def config(self, seed: int, folder: str) -> Config:
        cfg = read_config(self.args.config, dict(data_root=f'{self.scenes}/'))
        cfg.work_dir = str(self.args.work_dir / f'seed-{seed}' / folder)
        cfg.randomness = dict(seed=seed)
        cfg.log_level = 'WARNING'
        cfg.launcher = 'none'
        return cfg

    def teacher_file(self, seed: int) -> Path:
        return self.args.work_dir / f'seed-{seed}' / 'teacher.pth'

    def train_teacher(self, seed: int) -> dict:
        cfg = self.config(seed, 'teacher')
        score, runner = self.train(cfg, self.args.teacher_iters)
        with whole_file(self.teacher_file(seed)) as partial:
            torch.save(dict(state_dict=runner.model.state_dict()), partial)
        return dict(mIoU=dict(trained=score))

    def convert(self, arm: str, seed: int) -> dict:
        """Copy, transfer, fine-tune; an arm without parameters of its own fine-tunes for both."""
        run = self.linearisation(arm, seed, arm, transfer=True)
        run.run()
        inputs = run.inputs(batches=8)
        shown = dict(copied='copied', attention='transferred')
        shown['fine-tuned'] = 'fine-tuned' if run.new_parameters else 'without transfer'
        states = run.states()
        return dict(
            mIoU={shown[state]: run.metrics(state)['mIoU'] for state in states},
            errors={shown[state]: run.errors(state, inputs) for state in states},
        )

    def without_transfer(self, arm: str, seed: int) -> dict:
        """All iterations for the fine-tuning."""
        run = self.linearisation(arm, seed, f'{arm}-without-transfer', transfer=False)
        if not run.new_parameters:  # as above
            return dict(mIoU={})
        run.run()
        return dict(mIoU={'without transfer': run.metrics('fine-tuned')['mIoU']})

    def linearisation(self, arm: str, seed: int, folder: str, transfer: bool) -> Linearisation:
        cfg, iters = self.config(seed, folder), self.args.iters
        transfer = transfer and arm != 'ReLU'
        steps = dict(attention=iters * transfer, features=0)
        steps['fine-tuned'] = iters if transfer else 2 * iters
        rates = dict(attention=1e-2, features=1e-4)
        file = str(self.teacher_file(seed))
        return Linearisation(cfg, file, ARMS[arm], STAGES, steps, rates)

    def train_on(self, seed: int) -> dict:
        """The layer-wise hybrid, with as many further iterations as the arms have."""
        cfg = self.config(seed, 'trained-on')
        cfg.load_from = str(self.teacher_file(seed))
        return dict(mIoU={'trained on': self.train(cfg, 2 * self.args.iters)[0]})

    def from_scratch(self, arm: str, seed: int) -> dict:
        """The linear model, with as many iterations as the arm has after the teacher."""
        cfg = linear_config(self.config(seed, f'{arm}-from-scratch'), ARMS[arm], STAGES)
        return dict(mIoU={'from scratch': self.train(cfg, 2 * self.args.iters)[0]})

    @staticmethod
    def train(cfg: Config, iters: int) -> tuple[float, Runner]:
        """Train for some iterations, or the rest of them, and test."""
        init_default_scope(cfg.default_scope)
        test = dict(
            test_dataloader=cfg.test_dataloader,
            test_evaluator=cfg.test_evaluator,
            test_cfg=cfg.test_cfg,
        )
        cfg = shorten(cfg, iters)
        cfg.update(test)
        latest = find_latest_checkpoint(cfg.work_dir) if Path(cfg.work_dir).is_dir() else None
        if latest:
            cfg.load_from, cfg.resume = latest, True
        prepare_training(cfg)
        runner = build_runner(named(cfg, Path(cfg.work_dir).name))
        runner.train()
        return float(runner.test_loop.run()['mIoU']), runner

    # --- Report ---------------------------------------------------------------------------------

    def scores(self) -> dict[str, dict[str, dict[int, float]]]:
        """Arm to state to seed to mIoU."""
        scores: dict[str, dict[str, dict[int, float]]] = {}
        for name, result in self.results.items():
            arm, seed = name.rsplit('/', 1)
            arm = arm.split(', ')[0] if arm.split(', ')[0] in ARMS else arm
            for state, value in result['mIoU'].items():
                scores.setdefault(arm, {}).setdefault(state, {})[int(seed)] = value
        return scores

    def errors(self) -> dict[str, dict[str, dict[str, list[float]]]]:
        """Arm to state to layer to the errors of all seeds."""
        errors: dict = {}
        for name, result in self.results.items():
            for state, layers in result.get('errors', {}).items():
                for layer, value in layers.items():
                    place = errors.setdefault(name.rsplit('/', 1)[0], {}).setdefault(state, {})
                    place.setdefault(layer, []).append(value)
        return errors

    def report(self) -> str:
        """Both tables and a sentence, in Markdown; with ``--report`` also as files."""
        scores, errors = self.scores(), self.errors()
        lines = ['What follows ± is the standard deviation over the seeds.', '']
        lines.append('| attention of stages 3, 4 | ' + ' | '.join(STATES) + ' | seeds |')
        lines.append('| --- |' + ' --- |' * (len(STATES) + 1))
        for arm in [arm for arm in ARMS if arm in scores]:
            cells = [
                mean_and_spread(scores[arm][state].values()) if state in scores[arm] else '-'
                for state in STATES
            ]
            seeds = len(scores[arm].get('copied', {}))
            lines.append(f'| {arm} | {" | ".join(cells)} | {seeds} |')
        for name in (TEACHER, HYBRID):
            for state, values in scores.get(name, {}).items():
                lines.append(f'\n{name} ({state}): mIoU {mean_and_spread(values.values())}.')
        layers = list(dict.fromkeys(x for a in errors.values() for s in a.values() for x in s))
        lines += ['', '| squared error over power | ' + ' | '.join(layers) + ' |']
        lines.append('| --- |' + ' --- |' * len(layers))
        for arm, states in errors.items():
            for state, found in states.items():
                cells = ' | '.join(f'{mean(found[layer]):.3f}' for layer in layers)
                lines.append(f'| {arm}, {state} | {cells} |')
        text = '\n'.join(['# Results of the study', '', *lines]) + '\n'
        if self.args.report:
            content = json.dumps(self.results, indent=1) + '\n'
            for name, written in (('results.md', text), ('results.json', content)):
                with whole_file(self.args.report / name) as partial:
                    partial.write_text(written, encoding='utf-8')
            plot(scores, errors, self.args.report / 'results.png')
        return text


def plot(scores: dict, errors: dict, path: Path) -> None:
    """mIoU of each arm and state, every seed a dot, and the error of each layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout='constrained')
    left, right = figure.subplots(1, 2)
    arms = [arm for arm in ARMS if arm in scores]
    for number, state in enumerate(STATES):
        shown = [(i, scores[arm][state]) for i, arm in enumerate(arms) if state in scores[arm]]
        shift = 0.15 * (number - 2)
        for i, values in shown:
            left.plot(
                [i + shift] * len(values), list(values.values()), 'o', color=f'C{number}', ms=4
            )
        means = [mean(values.values()) for _, values in shown]
        left.plot([i + shift for i, _ in shown], means, '_', color=f'C{number}', ms=14, label=state)
    for name, style in ((TEACHER, '--'), (HYBRID, ':')):
        for values in scores.get(name, {}).values():
            left.axhline(mean(values.values()), color='black', ls=style, lw=1, label=name)
    left.set_xticks(range(len(arms)), arms)
    left.set(ylabel='mIoU (%)', title='what is kept')
    left.grid(axis='y', alpha=0.3)
    for number, arm in enumerate(arms):
        for state, style in zip(('copied', 'transferred'), ('o:', 's-')):
            layers = errors.get(arm, {}).get(state, {})
            means = [mean(values) for values in layers.values()]
            right.plot(means, style, color=f'C{number}', label=f'{arm}, {state}') if means else None
    names = next(iter(next(iter(errors.values())).values())) if errors else []
    right.set_xticks(range(len(names)), names)
    right.set(
        yscale='log',
        xlabel='layer',
        ylabel='squared error over power',
        title="error of the layers' outputs",
    )
    right.margins(y=0.02)
    # Layers that are exact but for rounding would flatten all others.
    lowest, highest = right.get_ylim()
    right.set_ylim(max(lowest, SHOWN_ERROR), highest)
    if lowest < SHOWN_ERROR:
        right.set_title(f"error of the layers' outputs, from {SHOWN_ERROR:g} on")
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    figure.legend(*left.get_legend_handles_labels(), loc='outside lower center', ncols=7)
    save_figure(figure, path, dpi=110)


def main() -> None:
    args = parse_args()
    MMLogger.get_instance('mmengine', log_level='WARNING')
    # Some twenty runs a seed, each of which would prettify its config for longer than it tests.
    mmengine_config.FormatCode = lambda code, **_: (code, False)
    with one_line_errors():
        study = Study(args)
        if not args.report_only:
            study.run()
        print('\n' + study.report())


if __name__ == '__main__':
    main()
