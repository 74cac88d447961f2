"""Parts of distributed runs on a machine without a GPU; whole runs are in ``test_tools``."""

import gc

import pytest
import torch
from mmengine.config import Config
from torch import distributed, nn

from mirrorla_mm.engine import distributed as engine
from mirrorla_mm.engine.distributed import CPUDistributedDataParallel


@pytest.fixture
def process_group(tmp_path):
    distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/meeting', rank=0, world_size=1
    )
    yield
    gc.collect()  # of a wrapper that lives, the reducer may hang here (pytorch #182083)
    distributed.destroy_process_group()


def test_workers_start_as_the_runner_will_have_them_start(monkeypatch):
    done = []
    monkeypatch.setattr(engine, 'use_gloo_without_gpu', lambda cfg: None)
    monkeypatch.setattr(engine, 'set_multi_processing', lambda **cfg: done.append(cfg))
    monkeypatch.setattr(engine, 'init_dist', lambda launcher, **cfg: done.append((launcher, cfg)))
    env = dict(mp_cfg=dict(mp_start_method='fork'), dist_cfg=dict(backend='nccl'))
    engine.join_processes(Config(dict(launcher='pytorch', env_cfg=env)))
    assert done == [
        dict(mp_start_method='fork', distributed=True),
        ('pytorch', dict(backend='nccl')),
    ]


@pytest.mark.usefixtures('process_group')
def test_batch_norms_of_a_synchronised_model_train_on_cpus():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4))
    weight = model[1].weight
    parallel = CPUDistributedDataParallel(model)
    parallel(torch.rand(2, 3, 5, 5)).square().sum().backward()
    assert not any(isinstance(layer, nn.SyncBatchNorm) for layer in parallel.modules())
    assert weight.grad is not None and set(parallel.module.state_dict()) == {
        *('0.weight', '0.bias', '1.weight', '1.bias'),
        *('1.running_mean', '1.running_var', '1.num_batches_tracked'),
    }
