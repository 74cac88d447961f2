"""The trainings that a linearisation consists of, and what it remembers of its settings."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS

from mirrorla_mm.engine import linearise_stages
from mirrorla_mm.engine.linearise_stages import Linearisation, shorten
from mirrorla_mm.registry import MODELS
from tests.archs import TINY

ITERS = dict(attention=20, features=40, **{'fine-tuned': 60})
LRS = dict(attention=1e-2, features=3e-4)


@pytest.fixture
def linearisation(tmp_path):
    """One of a small RAVLT, by its work dir and what its config has besides."""
    backbone = dict(type='mirrorla_mm.RAVLT', arch=TINY)
    file = tmp_path / 'softmax.pth'
    torch.save(dict(state_dict=MODELS.build(backbone).state_dict()), file)

    def make(folder='work', model=(), **options):
        cfg = dict(
            model=dict(dict(model), backbone=backbone),
            train_dataloader=dict(batch_size=3),
            work_dir=str(tmp_path / folder),
        )
        attn = dict(type='ReLUAttention')
        return Linearisation(Config({**cfg, **options}), str(file), attn, [3, 4], ITERS, LRS)

    return make


@pytest.mark.parametrize('target', LRS)
def test_a_transfer_has_its_own_rate_and_length_and_no_weight_decay(linearisation, target):
    cfg = linearisation()._transfer_config(target, 'start.pth')
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=LRS[target], weight_decay=0.0)
    assert cfg.train_cfg.max_iters == ITERS[target] and cfg.train_dataloader.batch_size == 3
    assert cfg.model.target == target and cfg.model.checkpoints[1] == 'start.pth'
    assert cfg.work_dir.endswith(f'work/{target}-training')


def test_a_transfer_drops_classes_as_the_training_did(linearisation):
    dropouts = [
        linearisation(model=model)._transfer_config('features', 'start.pth').model.class_dropout
        for model in (dict(class_dropout=0.3), {})
    ]
    assert dropouts == [0.3, 0.1]


def test_the_rate_rises_for_a_tenth_and_falls_to_nothing():
    cfg = shorten(Config(), 40)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(scheduler, optimizer=optimizer))
        for scheduler in cfg.param_scheduler
    ]
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert rates[0] == pytest.approx(0.01) and rates[2] < 0.9
    assert rates[4] == max(rates) == pytest.approx(1)
    assert rates[5:] == sorted(rates[5:], reverse=True) and rates[5] < 1
    assert rates[22] == pytest.approx(0.5) and rates[-1] < 0.01


def test_where_a_run_takes_place_is_none_of_its_settings(linearisation, tmp_path, monkeypatch):
    monkeypatch.setattr(linearise_stages, 'join_processes', lambda cfg: None)

    def settings(folder, **options):
        linearisation(folder, **options)
        return json.loads((tmp_path / folder / 'settings.json').read_text())

    expected = settings('first')
    for key, value in dict(
        launcher='slurm', log_level='DEBUG', resume=True, experiment_name='mine'
    ).items():
        assert settings(key, **{key: value}) == expected
    assert settings('other', train_dataloader=dict(batch_size=4)) != expected
