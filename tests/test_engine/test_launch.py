"""What the command lines for training and testing share."""

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
