#!/usr/bin/env python
"""From nothing to a trained and evaluated MirrorLA-XT detector and segmentor, in minutes.

Draws a small labelled data set and trains with ``tools/train.py``: first a segmentor from scratch,
then a detector whose backbone starts from the segmentor's. Evaluates both with ``tools/test.py``,
draws their predictions and prints one closing table. What an earlier call has finished is reused,
and an interrupted training goes on from its last checkpoint.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from mirrorla_mm.demo.dataset import Recipe, draw_dataset, is_drawn, remove_dataset
from mirrorla_mm.demo.figures import detection_figure, segmentation_figure
from mirrorla_mm.demo.tally import tally
from mirrorla_mm.engine.errors import UserError, hide_import_warnings
from mirrorla_mm.engine.launch import gpu_without_ops
from mirrorla_mm.engine.resuming import find_latest_checkpoint

from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
DATA_DIR = Path('data/demo')
WORK_DIR = Path('work_dirs/quickstart')
SCENES = range(6)
"""Validation scenes in the figures."""
PROGRESS = re.compile(
    r'Epoch\(train\)\s+\[(?P<epoch>\d+)\]\[\s*(?P<step>\d+)/(?P<steps>\d+)\]'
    r'.*\beta: (?P<eta>.+?)  .*\bloss: (?P<loss>\S+)'
)


@dataclass(frozen=True)
class Task:
    """A model to train, and how it is judged.

    Attributes:
        name: of its directory below the work directory.
        config: file in ``configs/quickstart``.
        goal: metric that shows whether the model has learned, and the value it must reach.
        metrics: keys of mmengine's metrics to report, with the names people know them by.
        results: option of the test evaluator that writes predictions, and its value.
        predictions: what that writes.
        draw: draws the side-by-side figure from data, predictions and scenes.
        count: says of the same what is right, in words that need no knowledge of the metrics.
    """

    name: str
    config: str
    goal: tuple[str, float]
    metrics: dict[str, str]
    results: tuple[str, str]
    predictions: str
    draw: Callable
    count: Callable[..., str] | None = None

    @property
    def config_path(self) -> str:
        return os.path.relpath(ROOT / 'configs' / 'quickstart' / self.config)


TASKS = (
    Task(
        name='segmentor',
        config='mirrorla-xt_efficientvit-head_demo-160x160.py',
        goal=('mIoU', 75.0),
        metrics={'mIoU': 'mIoU', 'aAcc': 'aAcc'},
        results=('output_dir', 'predictions'),
        predictions='predictions',
        draw=segmentation_figure,
    ),
    Task(
        name='detector',
        config='retinanet_mirrorla-xt_fpn_demo.py',
        goal=('coco/bbox_mAP_50', 0.75),
        metrics={'coco/bbox_mAP_50': 'bbox AP50', 'coco/bbox_mAP': 'bbox AP'},
        results=('outfile_prefix', 'predictions'),
        predictions='predictions.bbox.json',
        draw=detection_figure,
        count=tally,
    ),
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='of the drawn scenes (default %(default)s)'
    )
    parser.add_argument(
        '--data-dir', type=Path, default=DATA_DIR, help='of the scenes (default %(default)s)'
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=WORK_DIR,
        help='of checkpoints, logs and figures (default %(default)s)',
    )
    parser.add_argument(
        '--fresh', action='store_true', help='draw and train again instead of reusing'
    )
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f'--seed must not be negative, got {args.seed}')
    return args


class Quickstart:
    """The steps of the quickstart, each of which is skipped where it is done."""

    def __init__(self, args: argparse.Namespace, console: Console) -> None:
        self.recipe = Recipe(seed=args.seed)
        self.data: Path = args.data_dir
        self.work_dir: Path = args.work_dir
        self.fresh: bool = args.fresh
        self.console = console
        # The configs read these, here and in the subprocesses. In a command that is shown they
        # stand where they are not the configs' defaults.
        self.variables: dict[str, str] = {}
        self.export('MIRRORLA_DEMO_DATA', self.data, shown=self.data != DATA_DIR)
        # OpenMP threads that spin while they wait make training many times slower wherever another
        # program uses a core too.
        os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

    def run(self) -> bool:
        """Do everything; return whether both models reach their goals."""
        start = time.monotonic()
        for task in TASKS:
            self.refuse_foreign(task)
        if gpu_without_ops():
            os.environ['CUDA_VISIBLE_DEVICES'] = ''  # of the subprocesses
            self.say('On the CPU', "mmcv's ops, which the detector needs, are built without CUDA")
        self.draw_data()
        scores, before = {}, ''
        for task in TASKS:
            config = load_config(task.config_path)
            before = self.prepare(task, config, before)
            self.train(task, config.train_cfg.max_epochs)
            scores[task.name] = self.evaluate(task)
            if task.name == 'segmentor':
                default = self.work_dir == WORK_DIR
                self.export('MIRRORLA_DEMO_PRETRAINED', self.checkpoint(task), shown=not default)
        for task in TASKS:
            task.draw(self.data, self.predictions(task), SCENES, self.figure(task))
        self.console.print(self.closing_table(scores, time.monotonic() - start))
        self.suggest()
        return all(scores[t.name][t.goal[0]] >= t.goal[1] for t in TASKS)

    def export(self, name: str, value: object, *, shown: bool) -> None:
        """Set an environment variable of the configs."""
        os.environ[name] = str(value)
        if shown:
            self.variables[name] = str(value)

    def stamp(self, task: Task) -> Path:
        return self.work_dir / task.name / 'quickstart.sha256'

    def refuse_foreign(self, task: Task) -> None:
        """Make sure that the task's directory may be emptied."""
        directory = self.work_dir / task.name
        if directory.exists() and any(directory.iterdir()) and not self.stamp(task).exists():
            raise UserError(f'{directory} was not made by the quickstart; give another --work-dir.')

    def test_dir(self, task: Task) -> Path:
        return self.work_dir / task.name / 'test'

    def predictions(self, task: Task) -> Path:
        return self.test_dir(task) / task.predictions

    def checkpoint(self, task: Task) -> str | None:
        latest = find_latest_checkpoint(self.work_dir / task.name)
        return latest and os.path.relpath(latest)

    def figure(self, task: Task) -> Path:
        return self.work_dir / f'{task.name}.png'

    def draw_data(self) -> None:
        self.say('Data', f'{self.recipe.train} + {self.recipe.val} scenes in {self.data}')
        if self.fresh:
            remove_dataset(self.data)
        if is_drawn(self.data, self.recipe):
            self.console.print('drawn before, reused')
            return
        with Progress(console=self.console) as progress:
            bar = progress.add_task('drawing', total=self.recipe.train + self.recipe.val)
            draw_dataset(self.data, self.recipe, on_scene=lambda: progress.advance(bar))

    def prepare(self, task: Task, config: Config, before: str) -> str:
        """Make the task's directory; empty it where it was filled from something else.

        Returns the digest of all that the task depends on, which is ``before`` for the next task.
        """
        directory, stamp = self.work_dir / task.name, self.stamp(task)
        parts = [before, asdict(self.recipe), config.to_dict()]
        content = json.dumps(parts, sort_keys=True, default=str)
        current = hashlib.sha256(content.encode()).hexdigest()
        if stamp.exists() and not self.fresh and stamp.read_text() == current:
            return current
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        stamp.write_text(current)
        return current

    def train(self, task: Task, epochs: int) -> None:
        directory, checkpoint = self.work_dir / task.name, self.checkpoint(task)
        self.say(f'Train the {task.name}', f'log: {directory / "train.log"}')
        if checkpoint and Path(checkpoint).stem == f'epoch_{epochs}':
            self.console.print('trained before, reused')
            return
        shutil.rmtree(self.test_dir(task), ignore_errors=True)

        def report(line: str) -> None:
            if found := PROGRESS.search(line):
                self.console.print(
                    'epoch {epoch}/{epochs}, iteration {step}/{steps}: loss {loss}, '
                    'time left {eta}'.format(epochs=epochs, **found.groupdict()),
                    highlight=False,
                )

        resume = ['--resume'] if checkpoint else []
        self.call('train.py', [task.config_path, *resume], directory, 'train.log', report)

    def evaluate(self, task: Task) -> dict[str, float]:
        """Metrics of the trained model on the validation scenes, in mmengine's names."""
        directory = self.test_dir(task)
        self.say(f'Test the {task.name}', f'log: {directory / "test.log"}')
        metrics = read_metrics(directory)
        if metrics is None:
            option, value = task.results
            self.call(
                'test.py',
                [
                    task.config_path,
                    self.checkpoint(task),
                    '--cfg-options',
                    f'test_evaluator.{option}={directory / value}',
                ],
                directory,
                'test.log',
                lambda line: None,
            )
            metrics = read_metrics(directory)
        if metrics is None:
            raise UserError(f'tools/test.py wrote no metrics into {directory}.')
        for key, name in task.metrics.items():
            self.console.print(f'{name} {metrics[key]:.3g}')
        return metrics

    def call(
        self, tool: str, arguments: list[str], work_dir: Path, log: str, report: Callable
    ) -> None:
        """Run a command of ``tools/``: everything goes to the log, each line to ``report``."""
        work_dir.mkdir(parents=True, exist_ok=True)
        script, *rest = os.path.relpath(ROOT / 'tools' / tool), *arguments
        command = [sys.executable, script, *rest, '--work-dir', str(work_dir)]
        self.show(command)
        tail = deque(maxlen=15)
        output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        with open(work_dir / log, 'a') as file, subprocess.Popen(command, **output) as process:
            try:
                for line in process.stdout:
                    file.write(line)
                    tail.append(line)
                    report(line)
            except BaseException:  # whatever ends this program ends the command as well
                process.terminate()
                process.wait()
                raise
        if process.returncode:
            raise UserError(
                f'{"".join(tail)}\n{script} ended with exit code {process.returncode}; the whole '
                f'log is in {work_dir / log}.'
            )

    def show(self, command: list[str]) -> None:
        """Print a command as it can be typed again."""
        variables = [f'{name}={shlex.quote(value)}' for name, value in self.variables.items()]
        words = shlex.join([os.path.relpath(sys.executable), *command[1:]])
        shown = ' '.join(['$', *variables, words])
        self.console.print(shown, style='dim', soft_wrap=True, markup=False, highlight=False)

    def suggest(self) -> None:
        """Print three commands to go on with."""
        segmentor = TASKS[0]
        model = f'MirrorLA={segmentor.config_path}:{self.checkpoint(segmentor)}'
        tools = Path(os.path.relpath(ROOT / 'tools'))
        configs = Path(os.path.relpath(ROOT / 'configs'))
        for title, script, *options in (
            (
                'Where do the points of your own photo look?',
                *('analysis_tools/attention_maps.py', 'PHOTO.jpg', '--models', model),
                *('--points', '0.3,0.6', '0.7,0.5', '--out', 'attention.png'),
            ),
            (
                'Train on COCO, or by docs/own_data.md on your own data, from scratch',
                *('train.py', str(configs / 'retinanet/retinanet_mirrorla-t_fpn_1x_coco.py')),
                *('--cfg-options', 'data_root=YOUR_COCO/', 'model.backbone.norm_eval=False'),
            ),
            (
                'How fast is MirrorLA-T on this machine?',
                *('analysis_tools/benchmark.py', '--shapes', '512x512'),
            ),
        ):
            self.say(title, '')
            self.show([sys.executable, str(tools / script), *options])

    def closing_table(self, scores: dict[str, dict[str, float]], seconds: float) -> Table:
        table = Table(title='MirrorLA-XT on drawn scenes', show_lines=True, title_style='bold')
        table.add_column('model')
        table.add_column('on the validation scenes')
        table.add_column('files', overflow='fold')
        for task in TASKS:
            metrics, (goal, needed) = scores[task.name], task.goal
            figures = [f'{name} {metrics[key]:.3g}' for key, name in task.metrics.items()]
            verdict = 'learned' if metrics[goal] >= needed else 'NOT learned'
            figures.append(f'{verdict}: {task.metrics[goal]} ≥ {needed:g} needed')
            if task.count:
                figures.append(task.count(self.data, self.predictions(task), SCENES))
            files = (self.figure(task), self.checkpoint(task))
            table.add_row(task.name, '\n'.join(figures), '\n'.join(map(str, files)))
        table.add_row(
            'data', f'{self.recipe.train} + {self.recipe.val} scenes', f'{self.data}{os.sep}'
        )
        table.caption = f'this call took {seconds // 60:.0f} min {seconds % 60:.0f} s'
        return table

    def say(self, title: str, note: str) -> None:
        self.console.print(f'\n[bold]{title}[/]  [dim]{note}[/]', highlight=False)


def load_config(path: str) -> Config:
    """A config's content; nothing that it would import is imported."""
    hide_import_warnings()
    return Config.fromfile(path, import_custom_modules=False)


def read_metrics(directory: Path) -> dict[str, float] | None:
    """Metrics that mmengine's logger hook wrote at the end of the latest test, if any."""
    files = sorted(directory.glob('*/*.json'))
    return json.loads(files[-1].read_text()) if files else None


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    MMLogger.get_instance('mmengine', log_level='WARNING')  # loading a config is not news
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    try:
        learned = Quickstart(args, console).run()
    except (UserError, FileExistsError) as error:
        console.print(str(error), style='red', markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print('\nInterrupted. The same command goes on from here.')
        return 130
    if not learned:
        console.print('A model has not reached its goal; see the table.', style='red')
    return 0 if learned else 1


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
