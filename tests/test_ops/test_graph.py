"""The form for exported graphs is the reference's in another order."""

import itertools

import pytest
import torch
from torch import nn

from mirrorla_mm.attention import MirrorAttention
from mirrorla_mm.backbones import MirrorLA, NaLaFormer
from mirrorla_mm.engine.export import RawOutputs, export, largest_error
from mirrorla_mm.ops import mirror_attention, use_backend
from mirrorla_mm.ops.backend import select_backend
from mirrorla_mm.ops.options import Options
from tests.archs import TOY

pytest.importorskip('torch', minversion='2.9', reason='exports need torch 2.9')

FEATURE_MAPS = ('mirror', 'elu', 'relu')
EVERY = list(itertools.product(FEATURE_MAPS, (True, False), ((5, 7), None), (1, 3)))


@pytest.mark.parametrize('feature_map, rank_augmented, hw_shape, heads', EVERY)
def test_it_gives_what_the_reference_gives(feature_map, rank_augmented, hw_shape, heads):
    q, k, v = torch.randn(3, 2, heads, 35, 8, dtype=torch.float64)
    thetas = torch.randn(2, heads, 4, dtype=torch.float64)
    theta, theta_k = thetas if feature_map == 'mirror' else (None, None)
    outputs = []
    for backend in ('torch', 'graph'):
        with use_backend(backend):
            outputs.append(
                mirror_attention(
                    q,
                    k,
                    v,
                    theta,
                    theta_k=theta_k,
                    feature_map=feature_map,
                    rank_augmented=rank_augmented,
                    hw_shape=hw_shape,
                )
            )
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)


def test_nothing_but_an_export_takes_it():
    q = torch.rand(1, 1, 6, 4)
    graph = select_backend(q, q, q, None, None, Options('relu'))
    with use_backend('graph'):
        assert select_backend(q, q, q, None, None, Options('relu')) is not graph


@pytest.mark.parametrize('host', [MirrorLA, NaLaFormer])
@pytest.mark.parametrize('reflection', [{}, dict(shared=False, variance_aware=False)])
def test_a_backbone_in_this_form_is_the_same(host, reflection):
    layout = ('linear', 'linear', 'softmax', 'linear')
    options = dict(reflection=reflection) if host is MirrorLA else {}
    model = host(TOY, layout, **options).double().eval()
    images = torch.rand(2, 3, 97, 131, dtype=torch.float64)
    outputs = []
    for backend in ('torch', 'graph'):
        with use_backend(backend):
            outputs.append(model(images))
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-10)


class OnMaps(nn.Module):
    """An attention of tokens, as a module of maps of three channels."""

    def __init__(self, **options):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.attention = MirrorAttention(16, 2, **options)

    def forward(self, x):
        tokens = self.stem(x).permute(0, 2, 3, 1).flatten(1, 2)
        return self.attention(tokens, x.shape[-2:])


@pytest.mark.slow
def test_reduced_keys_are_reflected_in_an_onnx_graph(tmp_path):
    """ONNX has no complex numbers; without a reduction the projection reflects."""
    model = RawOutputs(OnMaps(sr_ratio=2).eval().requires_grad_(False))
    file = tmp_path / 'model.onnx'
    export(model, file, 'onnx', (12, 14))
    assert largest_error(model, file, 'onnx', [(12, 14), (9, 7)], batch=3) < 1e-5
