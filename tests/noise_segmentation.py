"""A segmentor of a few thousand weights on images of noise, with every kind of randomness."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config


def draw_images(root: Path, count: int = 12) -> None:
    generator = np.random.default_rng(0)
    for folder in ('images', 'labels'):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        image = generator.integers(0, 255, (48, 48, 3), np.uint8)
        cv2.imwrite(str(root / 'images' / f'{i}.png'), image)
        cv2.imwrite(str(root / 'labels' / f'{i}.png'), (image[..., 0] > 127).astype(np.uint8))


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
