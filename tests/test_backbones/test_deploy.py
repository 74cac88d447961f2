from copy import deepcopy

import pytest
import torch
from torch import nn

from mirrorla_mm.backbones import RAVLT, LinearPVT, LinearSwin, MirrorLA, NaLaFormer
from mirrorla_mm.backbones import deploy as deploying
from mirrorla_mm.backbones.ravlt import ARCHS
from mirrorla_mm.ops import products, strips, use_backend
from tests.archs import TOY


def as_trained(model):
    """Norms, LayerScales and biases away from where they start."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, std=0.3)
    for name, parameter in model.named_parameters():
        if 'gamma' in name:
            nn.init.normal_(parameter, 0.5, 0.3)
    return model.eval()


def relative_error(outputs, expected):
    return max(
        float((y - x).abs().max() / x.abs().max()) for y, x in zip(outputs, expected, strict=True)
    )


@pytest.mark.parametrize('layout', ['hybrid', 'linear'])
@pytest.mark.parametrize(
    'arch', [pytest.param(a, marks=[pytest.mark.slow] * (a != 'xt')) for a in ARCHS]
)
def test_outputs_of_every_arch_and_layout_stay(arch, layout):
    model = as_trained(MirrorLA(arch, layout))
    image = torch.rand(1, 3, 54, 70)
    # The plain form of everything, with gradients so that nothing streams.
    with use_backend('torch'):
        expected = [y.detach() for y in model(image)]
    with torch.no_grad():
        assert relative_error(model(image), expected) < 1e-4
        model.switch_to_deploy()
        assert relative_error(model(image), expected) < 1e-4


@pytest.mark.parametrize('host', [MirrorLA, RAVLT, NaLaFormer])
def test_folding_and_streaming_are_exact(host, monkeypatch):
    monkeypatch.setattr(strips, 'STRIP_BYTES', 1 << 14)
    model = as_trained(host(TOY, layout=('linear', 'linear', 'softmax', 'linear'))).double()
    images = torch.rand(2, 3, 141, 97, dtype=torch.float64)
    with use_backend('torch'):
        expected = [y.detach() for y in model(images)]
    with torch.no_grad():
        assert relative_error(model(images), expected) < 1e-12
        assert relative_error(model.switch_to_deploy()(images), expected) < 1e-12
    assert relative_error([y.detach() for y in model(images)], expected) < 1e-12


def test_everything_named_is_folded():
    model = MirrorLA(TOY, reflection=dict(shared=False)).switch_to_deploy()
    left = {name.split('.')[-1] for name, _ in model.named_parameters()}
    assert left == {'weight', 'bias', 'theta', 'theta_k'}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_switching_twice_changes_nothing():
    model = as_trained(MirrorLA(TOY)).switch_to_deploy()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    after = model.switch_to_deploy().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize('shape', [(64, 64), (141, 97)])
def test_deploy_mode_in_float32_is_as_near_to_float64_as_the_reference(shape):
    model = as_trained(MirrorLA(TOY, layout='linear'))
    image = torch.rand(1, 3, *shape)
    with torch.no_grad():
        with use_backend('torch'):
            expected = deepcopy(model).double()(image.double())
            reference = relative_error(model(image), expected)
        error = relative_error(model.switch_to_deploy()(image), expected)
    assert reference < 1e-4 and error < max(1e-5, 3 * reference)


@pytest.mark.parametrize('host', [MirrorLA, NaLaFormer])
def test_bfloat16_stays_near_float32_and_returns_it(host):
    if not strips.has_bfloat16():
        pytest.skip('the processor has no bfloat16 arithmetic')
    model = as_trained(host(TOY, layout=('linear', 'linear', 'softmax', 'linear')))
    images = torch.rand(2, 3, 141, 97)
    with torch.no_grad():
        expected = model(images)
        with torch.autocast('cpu', torch.bfloat16):
            assert relative_error(model(images), expected) < 0.05
        outputs = model.switch_to_deploy('bfloat16')(images)
    assert {y.dtype for y in outputs} == {torch.float32}
    assert 1e-4 < relative_error(outputs, expected) < 0.05
    assert model.switch_to_deploy().deploy_dtype == 'bfloat16'


def test_without_bfloat16_arithmetic_it_says_so_and_stays_in_float32(monkeypatch, capsys):
    monkeypatch.setattr(deploying, 'has_bfloat16', lambda: False)
    logged = []
    monkeypatch.setattr(deploying, 'print_log', lambda text, **_: logged.append(text))
    assert MirrorLA(TOY).switch_to_deploy('bfloat16').deploy_dtype is None
    assert len(logged) == 1 and 'stays in float32' in logged[0]


def test_a_model_that_cannot_compute_in_bfloat16_says_so(monkeypatch):
    monkeypatch.setattr(deploying, 'has_bfloat16', lambda: True)
    logged = []
    monkeypatch.setattr(deploying, 'print_log', lambda text, **_: logged.append(text))
    deploying.deploy(nn.Sequential(nn.Linear(4, 4)), 'bfloat16')
    expected = 'No backbone here can compute in bfloat16: deploy mode stays in float32.'
    assert logged == [expected]
    assert deploying.deploy(MirrorLA(TOY), 'bfloat16').deploy_dtype == 'bfloat16'
    assert logged == [expected]


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="got 'float16'"):
        MirrorLA(TOY).switch_to_deploy('float16')


def test_training_is_refused_and_evaluation_is_not():
    model = MirrorLA(TOY).switch_to_deploy()
    assert not model.eval().training
    with pytest.raises(RuntimeError, match='deploy mode, .* cannot be trained'):
        model.train()
    with pytest.raises(RuntimeError, match='deploy mode'):
        nn.Sequential(model).train()


def test_plain_weights_load_before_the_switch_and_are_refused_after():
    source, model = as_trained(MirrorLA(TOY)), MirrorLA(TOY)
    weights = {key: value.clone() for key, value in source.state_dict().items()}
    model.load_state_dict(weights)
    model.switch_to_deploy()
    source.switch_to_deploy()
    with pytest.raises(RuntimeError, match='load them into a new model before it is deployed'):
        model.load_state_dict(weights, strict=False)
    model.load_state_dict(source.state_dict())


@pytest.mark.parametrize('host', [LinearSwin, LinearPVT])
def test_plain_weights_are_refused_by_any_deployed_host_and_by_what_holds_it(host):
    sizes = dict(mlp_ratios=(2,) * 4) if host is LinearPVT else dict(depths=(1, 1, 1, 1))
    kind = dict(type='MirrorAttention')
    model = nn.ModuleDict(dict(backbone=host(attn_cfg=kind, layout='linear', **sizes)))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    deploying.deploy(model)
    for part, prefix in ((model, ''), (model.backbone, 'backbone.')):
        before = {key: value.clone() for key, value in part.state_dict().items()}
        given = {key.removeprefix(prefix): value + 1 for key, value in weights.items()}
        with pytest.raises(RuntimeError, match='These weights are not folded'):
            part.load_state_dict(given, strict=False)
        assert all(torch.equal(before[key], value) for key, value in part.state_dict().items())
        part.load_state_dict(before)


@pytest.mark.parametrize('host', [RAVLT, MirrorLA])
@torch.no_grad()
def test_projections_that_no_image_changes_are_made_once(host, monkeypatch):
    """To v and to the gate, and to q and k where no reflection follows the image."""
    made, fast_affine = [], products.fast_affine
    monkeypatch.setattr(
        products, 'fast_affine', lambda *layer: made.append(layer) or fast_affine(*layer)
    )
    images, model = torch.rand(1, 3, 96, 96), as_trained(host(TOY, 'linear')).switch_to_deploy()
    first = model(images)
    assert made
    made.clear()
    again = model(images)
    assert not made
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    layer = model.stages[0][0].attn.qkv
    layer.weight.data = layer.weight * 2
    assert relative_error(model(images), first) > 1e-3
    assert made
