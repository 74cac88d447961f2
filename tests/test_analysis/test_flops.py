"""The counter, against formulas and against the expected sizes of the models."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import nn

from mirrorla_mm.analysis.flops import (
    MacCounter,
    build_empty,
    config_complexity,
    empty_parameters,
    model_complexity,
    total_complexity,
)
from mirrorla_mm.analysis.metafiles import models_of
from mirrorla_mm.analysis.paper_tables import complexity

CONFIGS = Path(__file__).parents[2] / 'configs'


def count(model: nn.Module, *inputs: torch.Tensor) -> tuple[int, int]:
    with torch.no_grad(), MacCounter(model) as counter:
        model(*inputs)
    return counter.layers, counter.total


def test_layers_are_counted_by_their_formulas():
    assert count(nn.Linear(3, 5), torch.rand(2, 7, 3)) == (2 * 7 * 3 * 5,) * 2
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    assert count(conv, torch.rand(1, 4, 8, 8)) == (4 * 4 * 6 * 2 * 9,) * 2
    deconv = nn.ConvTranspose2d(3, 5, 2, stride=2)
    assert count(deconv, torch.rand(1, 3, 4, 4)) == (4 * 4 * 3 * 5 * 4,) * 2


class Attention(nn.Module):
    """Self-attention whose weight is computed from parameters, as a folded reflection's is."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.rand(8))
        self.qkv = nn.Parameter(torch.rand(24, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = F.linear(x, self.qkv * self.u).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize('device', ['meta', 'cpu'])
def test_activations_by_activations_are_attention_and_not_layers(device):
    model = Attention().to(device)
    x = torch.rand(1, 1, 10, 8, device=device)
    layers, total = count(model, x)
    assert layers == 10 * 8 * 24
    assert total == layers + 2 * 10 * 10 * 8


class Predicted(nn.Module):
    """A convolution whose weight a layer predicts from the input, as InLine's is."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = nn.Linear(4, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.predict(x.mean((0, 2, 3))).view(4, 1, 3, 3)
        return F.conv2d(x, weight, torch.zeros_like(x[0, :, 0, 0]), padding=1, groups=4)


def test_a_convolution_by_predicted_weights_is_attention_and_no_layer():
    layers, total = count(Predicted(), torch.rand(1, 4, 8, 8))
    assert layers == 4 * 36
    assert total == layers + 8 * 8 * 4 * 9


def test_parameters_take_no_memory_and_numbers_stay_real():
    with empty_parameters():
        layer = nn.Linear(3, 2)
        assert torch.linspace(0, 1, 3).tolist() == [0.0, 0.5, 1.0]
    assert layer.weight.is_meta
    assert not nn.Linear(3, 2).weight.is_meta


# The expected sizes of DESIGN: worked out before the models were written.
ARCHS = {
    'xt': (6.13, 0.62, 0.61),
    't': (14.90, 2.61, 2.54),
    's': (25.59, 4.88, 4.73),
    'b': (48.24, 10.58, 10.35),
    'l': (95.24, 17.2, 16.8),
}


@pytest.mark.parametrize('arch', ARCHS)
def test_classifiers_have_the_expected_size(arch):
    """By the metafile, whose numbers other tests hold against the models."""
    stated = {m['Name']: m['Metadata'] for m in models_of(CONFIGS / 'imagenet' / 'metafile.yml')}
    params, hybrid, linear = ARCHS[arch]
    first, second = (stated[f'mirrorla-{arch}{kind}_8xb128_in1k'] for kind in ('', '-linear'))
    assert first['Parameters'] / 1e6 == pytest.approx(params, rel=0.01)
    assert first['FLOPs'] / 1e9 == pytest.approx(hybrid, rel=0.01)
    assert second['FLOPs'] / 1e9 == pytest.approx(linear, rel=0.01)


DENSE = {
    ('retinanet/retinanet_mirrorla-{}_fpn_1x_coco.py', (800, 1280)): dict(
        t=(23.6, 200.1), s=(34.3, 242.9)
    ),
    ('mask_rcnn/mask-rcnn_mirrorla-{}_fpn_amp-1x_coco.py', (800, 1280)): dict(
        t=(33.5, 218.7), s=(44.2, 261.5)
    ),
    (
        'efficientvit_head/mirrorla-{}_efficientvit-head_4xb4-160k_ade20k-512x512.py',
        (512, 512),
    ): dict(t=(13.7, 13.6), s=(24.6, 25.3)),
    (
        'efficientvit_head/mirrorla-{}_efficientvit-head_4xb2-160k_cityscapes-1024x1024.py',
        (1024, 2048),
    ): dict(t=(13.7, 109.4), s=(24.65, 204.0)),
    ('sem_fpn/mirrorla-{}_fpn_4xb4-80k_ade20k-512x512.py', (512, 2048)): dict(t=(17.6, 135.6)),
    ('light_ham_head/mirrorla-{}_light-ham-head_4xb4-160k_ade20k-512x512.py', (512, 512)): dict(
        t=(13.8, 14.4), s=(24.5, 25.4)
    ),
}


@pytest.mark.parametrize(
    ('name', 'shape', 'params', 'layers'),
    [
        pytest.param(
            name.format(arch),
            shape,
            *expected,
            marks=[pytest.mark.slow] * (arch != 't' or 'retinanet' not in name),
        )
        for (name, shape), archs in DENSE.items()
        for arch, expected in archs.items()
    ],
)
def test_dense_models_have_the_expected_size(name, shape, params, layers):
    cost = complexity(CONFIGS / name, shape)
    assert cost.params / 1e6 == pytest.approx(params, rel=0.01)
    assert cost.layers / 1e9 == pytest.approx(layers, rel=0.01)


def test_components_cover_the_model_and_rois_cost_by_number():
    cfg = Config.fromfile(CONFIGS / 'mask_rcnn/mask-rcnn_mirrorla-t_fpn_amp-1x_coco.py')
    model = build_empty(cfg)
    parts = model_complexity(model, (64, 64), proposals=10, masks=2)
    assert list(parts) == ['backbone', 'neck', 'rpn_head', 'roi_head.bbox', 'roi_head.mask']
    assert total_complexity(parts).params == sum(p.numel() for p in model.parameters())
    twice = model_complexity(model, (64, 64), proposals=20, masks=4)
    for name, cost in parts.items():
        factor = 2 if name.startswith('roi_head') else 1
        assert twice[name].layers == factor * cost.layers


def test_auxiliary_heads_have_parameters_and_cost_nothing():
    cfg = Config.fromfile(CONFIGS / 'upernet/mirrorla-s_upernet_8xb2-160k_ade20k-512x512.py')
    extra = config_complexity(cfg, (64, 64))['training only']
    assert extra.params > 0
    assert extra.layers == extra.total == 0
