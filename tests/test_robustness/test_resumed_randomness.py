"""Killed at any point, a run with every kind of randomness goes on as if nothing had happened."""

import contextlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mirrorla_mm.engine.reproducible import Draw, make_reproducible, seed_everything

REPOSITORY = Path(__file__).resolve().parents[2]


def draw_pictures(root: Path, count: int = 12) -> None:
    generator = np.random.default_rng(0)
    for folder in ('images', 'labels'):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        picture = generator.integers(0, 255, (48, 48, 3), np.uint8)
        cv2.imwrite(str(root / 'images' / f'{i}.png'), picture)
        cv2.imwrite(str(root / 'labels' / f'{i}.png'), (picture[..., 0] > 127).astype(np.uint8))


def config(data: Path, work_dir: Path, by_epoch: bool, workers: int, seed: int | None) -> Config:
    """Drop-path, random augmentation, EMA and a schedule, on a model of a few thousand weights."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='RandomCrop', crop_size=(32, 32)),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackSegInputs'),
    ]
    length = dict(max_epochs=4) if by_epoch else dict(max_iters=12)
    return Config(
        dict(
            default_scope='mmseg',
            custom_imports=dict(imports=['mirrorla_mm'], allow_failed_imports=False),
            work_dir=str(work_dir),
            experiment_name=work_dir.name + str(time.monotonic_ns()),
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32)),
                backbone=dict(
                    type='mirrorla_mm.MirrorLA',
                    arch=dict(embed_dims=(8, 8), depths=(1, 1), num_heads=(1, 1)),
                    layout=('linear', 'linear'),
                    drop_path_rate=0.5,
                    out_indices=(0, 1),
                ),
                decode_head=dict(
                    type='FCNHead',
                    in_channels=8,
                    in_index=1,
                    channels=8,
                    num_convs=1,
                    num_classes=2,
                    dropout_ratio=0.5,
                ),
            ),
            train_dataloader=dict(
                batch_size=4,
                num_workers=workers,
                persistent_workers=workers > 0,
                sampler=dict(
                    type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True
                ),
                dataset=dict(
                    type='BaseSegDataset',
                    data_root=str(data),
                    metainfo=dict(classes=('a', 'b'), palette=[[0] * 3, [9] * 3]),
                    img_suffix='.png',
                    data_prefix=dict(img_path='images', seg_map_path='labels'),
                    pipeline=pipeline,
                ),
            ),
            train_cfg=dict(by_epoch=by_epoch, **length),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=5),
                dict(type='CosineAnnealingLR', T_max=12, by_epoch=False, begin=5, end=12),
            ],
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=by_epoch),
                logger=dict(type='LoggerHook', interval=1),
            ),
            custom_hooks=[dict(type='EMAHook', momentum=0.1)],
            log_processor=dict(by_epoch=by_epoch, window_size=1),
            randomness=dict(seed=seed),
            log_level='ERROR',
        )
    )


def losses(work_dir: Path) -> dict[int, float]:
    """Loss by iteration over all starts of a run; a later start's stands."""
    found: dict[int, float] = {}
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            found[entry.get('iter', entry['step'])] = entry['loss']
    return found


class Killed(Exception):
    """Stands for a signal that no process survives."""


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
    draw_pictures(tmp_path / 'data')
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
    draw_pictures(tmp_path / 'data')
    for name in ('whole', 'part'):
        config(tmp_path / 'data', tmp_path / name, False, 1, 5).dump(tmp_path / f'{name}.py')

    def start(name: str, *options: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, 'tools/train.py', str(tmp_path / f'{name}.py'), *options],
            cwd=REPOSITORY,
            env={**os.environ, 'PYTHONPATH': str(REPOSITORY), 'OMP_NUM_THREADS': '1'},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def kill_after(process: subprocess.Popen, iterations: float) -> None:
        deadline = time.monotonic() + 240
        while len(losses(tmp_path / 'part')) < iterations and time.monotonic() < deadline:
            assert process.poll() in (None, 0)
            if process.poll() == 0:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()

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
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()[-2000:]
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
