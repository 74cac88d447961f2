"""The recipes of docs/adding_an_attention.md, followed to the letter."""

import os
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch

from mirrorla_mm import attention, registry
from mirrorla_mm.backbones import RAVLT
from mirrorla_mm.ops import backend as backends
from mirrorla_mm.ops import mirror_attention, mirror_attention_reference, use_backend
from mirrorla_mm.registry import MODELS
from tests.archs import TINY
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / 'docs' / 'adding_an_attention.md').read_text()
SECTIONS = dict(re.findall(r'^##? (.*?)$(.*?)(?=^##? |\Z)', PAGE, flags=re.M | re.S))


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """Forget what a recipe registers."""
    monkeypatch.setattr(MODELS, '_module_dict', dict(MODELS._module_dict))
    monkeypatch.setattr(registry, 'ATTENTIONS', dict(registry.ATTENTIONS))
    monkeypatch.setattr(backends, '_backends', dict(backends._backends))


@pytest.fixture
def follow(tmp_path, monkeypatch):
    """Write the only block of a section's Python to a file and import it under a name."""

    def follow(section, name):
        (code,) = re.findall(r'```python\n(.*?)```', SECTIONS[section], flags=re.S)
        file = tmp_path / f'{name.split(".")[-1]}.py'
        file.write_text(code)
        spec = spec_from_file_location(name, file)
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return follow


@pytest.fixture
def method(follow, monkeypatch):
    cls = follow('1. The file', 'mirrorla_mm.attention.shifted_cosine').ShiftedCosineAttention
    monkeypatch.setattr(attention, 'ShiftedCosineAttention', cls, raising=False)
    return cls


def test_a_thirteenth_method_is_its_formula(method, follow):
    follow('3. The test', 'recipe_test').test_is_the_shifted_cosine_kernel()


# Registers the method before the suites collect the names of all.
PLUGIN = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location('mirrorla_mm.attention.shifted_cosine', {file!r})
module = sys.modules[spec.name] = module_from_spec(spec)
spec.loader.exec_module(module)
"""


@pytest.mark.slow
def test_a_thirteenth_method_passes_the_suites_of_all_methods(method, tmp_path):
    plugin = PLUGIN.format(file=sys.modules[method.__module__].__file__)
    (tmp_path / 'recipe_plugin.py').write_text(plugin)
    (command,) = re.findall('^python (-m pytest .*properties.*)$', PAGE, re.M)
    done = subprocess.run(
        [sys.executable, *command.split(), '-p', 'recipe_plugin', '-p', 'no:cacheprovider'],
        env={**os.environ, 'PYTHONPATH': str(tmp_path)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(re.search(r'(\d+) passed', done.stdout)[1]) > 30


def test_a_thirteenth_method_works_in_a_host_with_rope_whole_and_by_strips(method, monkeypatch):
    from mirrorla_mm.ops import strips

    monkeypatch.setattr(strips, 'STRIP_BYTES', 1 << 13)
    model = RAVLT(TINY, 'linear', attn_cfg=dict(type='ShiftedCosineAttention')).double().eval()
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        by_strips = model(image)
        with use_backend('torch'):
            torch.testing.assert_close(by_strips, model(image), rtol=1e-9, atol=1e-9)
    sum(y.sum() for y in model(image)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_exempt_parameter_of_a_thirteenth_method_does_not_decay(method):
    from mmengine.optim import build_optim_wrapper

    names: dict = {}
    exec((REPOSITORY / 'configs/_base_/schedules/no_decay.py').read_text(), names)
    (added,) = re.findall(r"`'(.*?)'`", SECTIONS['2. Weight decay'])
    keys = names['no_decay'] | {added: dict(decay_mult=0.0)}
    cfg = dict(
        optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.05),
        paramwise_cfg=dict(custom_keys=keys),
    )
    layer = torch.nn.ModuleDict(dict(attn=method(16, 2)))
    groups = build_optim_wrapper(layer, cfg).param_groups
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    assert decay[id(layer.attn.offset_table)] == 0
    assert decay[id(layer.attn.qkv.weight)] == 0.05


@pytest.mark.parametrize('name', ['MirrorAttention', 'SoftmaxAttention', 'FLattenAttention'])
def test_a_new_host_takes_any_attention(follow, name):
    host = follow('Adding a host', 'recipe_host').PlainHost
    model = MODELS.build(dict(type='mirrorla_mm.PlainHost', attn_cfg=dict(type=name)))
    assert isinstance(model, host)
    (out,) = model(torch.rand(2, 3, 40, 56))
    assert out.shape == (2, 32, 5, 7)
    out.sum().backward()


def test_a_new_backend_is_asked_by_the_operator_and_by_modules(follow, monkeypatch):
    module = follow('Adding a backend', 'recipe_backend')
    q, k, v = torch.randn(3, 1, 2, 12, 8, dtype=torch.float64)
    theta = torch.randn(2, 4, dtype=torch.float64)
    options = dict(rank_augmented=False)
    with use_backend('matrix'):
        ours = mirror_attention(q, k, v, theta, **options)
    torch.testing.assert_close(ours, mirror_attention_reference(q, k, v, theta, **options))

    calls = []
    counted = backends.Backend(lambda *a: calls.append(1) or module.run(*a), module.why_not)
    backends.register_backend('matrix', counted)
    layer = attention.ReLUAttention(16, 2, reflection={}).double()
    x = torch.randn(1, 60, 16, dtype=torch.float64)
    with torch.no_grad():
        out = layer(x, (6, 10))
        assert calls
        with use_backend('torch'):
            torch.testing.assert_close(out, layer(x, (6, 10)))
        layer(torch.randn(1, 72, 16, dtype=torch.float64), (6, 12))
        with use_backend('matrix'), pytest.raises(RuntimeError, match='at most 64 tokens'):
            layer(torch.randn(1, 72, 16, dtype=torch.float64), (6, 12))
    assert len(calls) == 1
