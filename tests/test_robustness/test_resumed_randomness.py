"""Killed at any point, a run with every kind of randomness goes on as if nothing had happened."""

import contextlib
import json
import pickle
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mirrorla_mm.engine.reproducible import Draw, make_reproducible, seed_everything
from tests import processes
from tests.noise_segmentation import config, draw_images
from tests.test_engine.toy import Killed

pytestmark = pytest.mark.usefixtures('plain_configs')


def losses(work_dir: Path) -> dict[int, float]:
    """Loss by iteration over all starts of a run; a later start's stands."""
    found: dict[int, float] = {}
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            found[entry.get('iter', entry['step'])] = entry['loss']
    return found


def train(cfg: Config, stop_after: int | None = None) -> dict[int, float]:
    """Losses of a run, which may be cut off right after an iteration."""
    seen: dict[int, float] = {}
    make_reproducible(cfg)
    runner = Runner.from_cfg(cfg)
    step = runner.model.train_step

    def recorded(*args, **kwargs):
        if runner.iter == stop_after:
            raise Killed
        out = step(*args, **kwargs)
        seen[runner.iter] = out['loss'].item()
        return out

    runner.model.train_step = recorded
    with contextlib.suppress(Killed):
        runner.train()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ('by_epoch', 'workers', 'seed'),
    [(True, 0, 3), (True, 2, None), (False, 0, None), (False, 2, 3)],
)
def test_resumed_run_draws_the_same_random_numbers(tmp_path, by_epoch, workers, seed):
    draw_images(tmp_path / 'data')
    cut = 7
    parts = [tmp_path / name for name in ('whole', 'part')]
    cfg = config(tmp_path / 'data', parts[0], by_epoch, workers, seed)
    whole = train(cfg)
    # An undisturbed run without a seed drew one; the comparison needs the same.
    seed = cfg.randomness.seed if seed is not None else drawn_seed(parts[0])
    torch.rand(5)  # Whatever state the process is in must not matter.
    before = train(config(tmp_path / 'data', parts[1], by_epoch, workers, seed), stop_after=cut)
    assert before == {step: whole[step] for step in range(cut)}
    latest = max(parts[1].glob('*.pth'), key=lambda p: int(p.stem.split('_')[1]))
    resumed_cfg = config(tmp_path / 'data', parts[1], by_epoch, workers, None)
    resumed_cfg.resume, resumed_cfg.load_from = True, str(latest)
    resumed = train(resumed_cfg)
    assert resumed == {step: whole[step] for step in resumed}
    assert max(resumed) == max(whole) and min(resumed) <= cut


def drawn_seed(work_dir: Path) -> int:
    checkpoint = next(work_dir.glob('*.pth'))
    return torch.load(checkpoint, weights_only=False)['meta']['seed']


@pytest.mark.slow
def test_run_killed_at_random_points_resumes_to_the_same_losses(tmp_path):
    draw_images(tmp_path / 'data')
    for name in ('whole', 'part'):
        config(tmp_path / 'data', tmp_path / name, False, 1, 5).dump(tmp_path / f'{name}.py')

    def start(name: str, *options: str) -> BaseProcess:
        config_file = tmp_path / f'{name}.py'
        return processes.start_tool(tmp_path / 'log', 'train', config_file, *options)

    def kill_after(process: BaseProcess, iterations: float) -> None:
        deadline = time.monotonic() + 240
        while len(losses(tmp_path / 'part')) < iterations and time.monotonic() < deadline:
            if not process.is_alive():
                assert process.exitcode == 0, (tmp_path / 'log').read_text()[-2000:]
                return
            time.sleep(0.005)
        processes.kill(process)

    whole = start('whole')
    seed = time.time_ns()
    print(f'seed of the points: {seed}')
    chance = random.Random(seed)
    # Before the first checkpoint too, and while one is written as well as may be.
    for low, high in ((0, 2), (2, 6), (6, 11)):
        process = start('part', '--resume')
        try:
            kill_after(process, chance.uniform(low, high))
        finally:
            process.kill()
    resumed = start('part', '--resume')
    for process in (whole, resumed):
        process.join(240)
        assert process.exitcode == 0, (tmp_path / 'log').read_text()[-2000:]
    assert losses(tmp_path / 'part') == losses(tmp_path / 'whole')
    assert len(losses(tmp_path / 'whole')) == 12
    final = [
        torch.load(tmp_path / name / 'iter_12.pth', weights_only=False)
        for name in ('whole', 'part')
    ]
    for part in ('state_dict', 'ema_state_dict'):
        assert all(torch.equal(v, final[1][part][key]) for key, v in final[0][part].items())
    assert final[0]['param_schedulers'] == final[1]['param_schedulers']


def test_draw_keeps_its_place_on_the_way_to_a_worker():
    draw = pickle.loads(pickle.dumps(Draw(7, (2, 3))))
    assert draw == 7 and draw.place == (2, 3) and [10, 20][Draw(1)] == 20


def test_neighbouring_places_are_seeded_apart():
    drawn = set()
    for place in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)):
        seed_everything(*place)
        drawn.add((random.random(), np.random.rand(), torch.rand(1).item()))
    assert len(drawn) == 4


def test_making_a_config_reproducible_twice_changes_nothing_more():
    cfg = Config(dict(train_dataloader=dict(sampler=dict(type='InfiniteSampler'))))
    make_reproducible(cfg)
    once = cfg.to_dict()
    make_reproducible(cfg)
    assert cfg.to_dict() == once
