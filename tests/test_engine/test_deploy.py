from types import SimpleNamespace

import pytest

from mirrorla_mm.backbones import MirrorLA
from mirrorla_mm.backbones import deploy as deploying
from mirrorla_mm.engine.deploy import DeployHook
from tests.archs import TOY


@pytest.mark.parametrize('dtype', [None, 'bfloat16'])
def test_the_hook_deploys_a_copy_in_the_dtype_it_is_given(dtype, monkeypatch):
    monkeypatch.setattr(deploying, 'has_bfloat16', lambda: True)
    model = MirrorLA(TOY)
    runner = SimpleNamespace(model=model)
    DeployHook(dtype).before_test_epoch(runner)
    assert runner.model.deployed and runner.model.deploy_dtype == dtype
    assert not model.deployed
