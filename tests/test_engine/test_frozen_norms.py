"""Batch norms that are frozen before anything trained them are named."""

from types import SimpleNamespace

import pytest
from torch import nn

from mirrorla_mm.engine.frozen_norms import FrozenNormHook


class Backbone(nn.Sequential):
    norm_eval = True


@pytest.fixture()
def model() -> nn.Module:
    model = nn.Module()
    model.backbone = Backbone(nn.BatchNorm2d(2), nn.BatchNorm2d(3), nn.LayerNorm(3))
    model.head = nn.BatchNorm2d(2)
    return model


def warnings(model: nn.Module) -> list[str]:
    said: list[str] = []
    FrozenNormHook().before_train(
        SimpleNamespace(model=model, logger=SimpleNamespace(warning=said.append))
    )
    return said


def test_untrained_statistics_are_named_with_the_way_out(model):
    (said,) = warnings(model)
    assert 'backbone.norm_eval=True freezes 2 batch norms' in said
    assert '--cfg-options model.backbone.norm_eval=False' in said
    assert warnings(nn.ModuleDict({'module': model})) == [said]  # within a wrapper


def test_loaded_statistics_and_norms_that_learn_are_not(model):
    for norm in model.backbone[:2]:
        norm.running_mean.fill_(0.1)
    assert warnings(model) == []
    model.backbone[0].running_mean.zero_()
    model.backbone.norm_eval = False
    assert warnings(model) == []
