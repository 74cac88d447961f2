"""Parts that the controlled studies share: runs, one after the other, and intervals."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner, set_random_seed

from ..engine.atomic import whole_file
from ..engine.data import DataError
from ..engine.errors import UserError
from ..engine.settings import keep_settings
from .provenance import provenance

CONFIDENCE = 0.95
RUNS = ('results.json', 'seed-*', '*/seed-*')  # what runs leave in the folder of a study


class Progress(Hook):
    """Says where the study stands, on one line, and how long an iteration takes.

    Args:
        label (str): Of the run.
        interval (int): Iterations from line to line. Defaults to 25.

    Raises:
        UserError: If the loss is no number: such a run has no result.
    """

    def __init__(self, label: str, interval: int = 25) -> None:
        self.label = label
        self.interval = interval
        self.first = 0
        self.start = 0.0
        self.seconds: float | None = None

    def before_train(self, runner: Runner) -> None:
        """Note where this sitting begins."""
        self.first, self.start = runner.iter, time.time()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Look at the loss, and print it now and then."""
        self.seconds = (time.time() - self.start) / (runner.iter + 1 - self.first)
        loss = outputs['loss'].item()
        if not math.isfinite(loss):
            raise UserError(f'{self.label}: the loss is {loss} after {runner.iter + 1} iterations.')
        if self.every_n_train_iters(runner, self.interval):
            print(
                f'{self.label}: {runner.iter + 1}/{runner.max_iters}, loss {loss:.4f}, '
                f'{self.seconds:.2f} s an iteration',
                flush=True,
            )


class SameHost(Hook):
    """Starts every row of a seed from the same weights wherever rows have them in common.

    Attentions draw parameters of their own in between, and so would give the host others.

    Args:
        model (dict): Config of the row whose weights all rows start from.
    """

    def __init__(self, model: dict) -> None:
        self.model = model

    def before_train(self, runner: Runner) -> None:
        """Copy the weights, unless the run is a resumed one."""
        if runner.iter > 0:
            return
        set_random_seed(runner.seed)
        with DefaultScope.overwrite_default_scope(runner.default_scope.scope_name):
            reference = MODELS.build(self.model)
        reference.init_weights()
        own = runner.model.state_dict()
        for name, value in reference.state_dict().items():
            if name in own and own[name].shape == value.shape:
                own[name].copy_(value)


def keep_study(work_dir: Path, settings: Mapping[str, Any], agreed: Iterable[Path] = ()) -> None:
    """Keep runs of other settings out of a study's folder; see :func:`~.keep_settings`.

    Args:
        work_dir (Path): Folder of the study, with a ``seed-N`` for each run or in that of each row.
        settings (Mapping[str, Any]): What all runs have in common.
        agreed (Iterable[Path]): Those folders of runs whose results name these settings. Defaults
            to none.

    Raises:
        UserError: If the folder has runs of other settings.
    """
    # Runs that were stopped count as well: they would go on with another schedule.
    runs = {run for name in RUNS for run in work_dir.glob(name)}
    way_out = 'move its runs (seed-*, results.json) away or name another --work-dir'
    keep_settings(work_dir / 'study.json', settings, bool(runs), runs <= {*agreed}, way_out)


def run_missing(
    todo: Iterable[tuple[str, int]],
    file_of: Callable[[str, int], Path],
    label_of: Callable[[str], str],
    run: Callable[[str, int, str], dict],
) -> None:
    """Make the runs that have no result yet; each is written with its provenance at once.

    Args:
        todo (Iterable[tuple[str, int]]): Rows and seeds, in the order to run them.
        file_of (Callable): Where the result of a row and a seed lies.
        label_of (Callable): A row's name for people.
        run (Callable): Takes row, seed and label, and gives the result.
    """
    todo, made = list(todo), provenance()
    for number, (row, seed) in enumerate(todo, 1):
        path = file_of(row, seed)
        label = f'[{number}/{len(todo)}] {label_of(row)}, seed {seed}'
        if path.exists():
            print(f'{label}: done before')
            continue
        result = run(row, seed, label)
        with whole_file(path) as partial:
            partial.write_text(json.dumps({**result, **made}) + '\n', encoding='utf-8')
        print(f'{label}: done', flush=True)


def read_runs(paths: Iterable[Path], rows: Sequence[str], key: str = 'row') -> list[dict]:
    """Results of finished runs, sorted by row and seed.

    Args:
        paths (Iterable[Path]): Files that :func:`run_missing` wrote.
        rows (Sequence[str]): Rows of the study, in order.
        key (str): The name that results have for their row. Defaults to ``'row'``.

    Raises:
        DataError: If a file holds no result of these rows.
    """
    results = []
    for path in sorted(paths):
        try:
            result = json.loads(path.read_text(encoding='utf-8'))
            rows.index(result[key]), result['seed']
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f'{path} holds no result of this study: {error}.') from error
        results.append(result)
    return sorted(results, key=lambda r: (rows.index(r[key]), r['seed']))


def half_width(values: Sequence[float], pairs: int = 1) -> float:
    """Of the 95 % interval of a mean, from the t distribution; infinite for one value.

    Args:
        values (Sequence[float]): What the mean is of.
        pairs (int): How many means are looked at: the 95 % are of all of them together
            (Bonferroni), so that none differs by chance alone. Defaults to 1.
    """
    from scipy.stats import t

    if len(values) < 2:
        return math.inf
    quantile = t.ppf(1 - (1 - CONFIDENCE) / 2 / pairs, len(values) - 1)
    return quantile * stdev(values) / math.sqrt(len(values))
