"""Code that the command lines for training and testing share."""

import argparse

import pytest
from mmengine.config import Config

from mirrorla_mm.engine import launch
from mirrorla_mm.engine.errors import UserError


@pytest.fixture
def gpu_without_ops(monkeypatch):
    monkeypatch.setattr(launch.torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(launch, 'get_compiling_cuda_version', lambda: 'not available')
    monkeypatch.setattr(launch, 'Runner', type('Runner', (), {'from_cfg': staticmethod(dict)}))


def config(metric: str) -> Config:
    return Config(dict(test_evaluator=dict(type=metric), launcher='none'))


@pytest.mark.usefixtures('gpu_without_ops')
def test_detector_is_refused_on_a_gpu_that_the_ops_are_not_built_for():
    with pytest.raises(UserError, match='compiled without CUDA.*CUDA_VISIBLE_DEVICES='):
        launch.build_runner(config('mmdet.CocoMetric'))


@pytest.mark.usefixtures('gpu_without_ops')
def test_segmentor_uses_a_gpu_that_the_ops_are_not_built_for():
    assert launch.build_runner(config('mmseg.IoUMetric'))


def test_detector_runs_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(launch.torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(launch, 'Runner', type('Runner', (), {'from_cfg': staticmethod(dict)}))
    assert launch.build_runner(config('mmdet.CocoMetric'))


def command_line(config: str, **options) -> argparse.Namespace:
    return argparse.Namespace(
        config=config, cfg_options=options, work_dir=None, launcher='none', local_rank=0
    )


def test_a_sharded_config_needs_a_launcher():
    sharded = Config(dict(strategy=dict(type='mirrorla_mm.FSDPStrategy'), launcher='none'))
    with pytest.raises(UserError, match='start it by tools/dist_train.sh'):
        launch.build_runner(sharded)


def test_a_config_of_another_package_takes_an_attention_by_options():
    name = 'mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py'
    options = {'model.backbone.type': 'mirrorla_mm.LinearPVT'}
    cfg = launch.load_config(command_line(name, **options))
    assert cfg.model.backbone.type == 'mirrorla_mm.LinearPVT'
    assert cfg.model.backbone.num_layers == [2, 2, 2, 2]
    assert cfg.work_dir.endswith('retinanet_pvt-t_fpn_1x_coco')


def test_a_config_that_the_package_does_not_have_is_named():
    with pytest.raises(UserError, match='mmdet::pvt/no-such.py cannot be used'):
        launch.load_config(command_line('mmdet::pvt/no-such.py'))
