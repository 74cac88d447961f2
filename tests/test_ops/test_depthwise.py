"""Depth-wise convolutions: results and gradients are those of F.conv2d, wherever they go."""

import pytest
import torch
import torch.nn.functional as F

from mirrorla_mm.ops import depthwise
from mirrorla_mm.ops.backend import use_backend
from mirrorla_mm.ops.depthwise import depthwise_conv
from mirrorla_mm.registry import build_attention

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason='torch is built without oneDNN'
)


def tensors(kernel, dtype=torch.float32, bias=True):
    shapes = [(2, 4, 6, 9), (4, 1, *kernel)] + [(4,)] * bias
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def plain(x, weight, bias=None):
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    return F.conv2d(x, weight, bias, padding=padding, groups=len(weight))


def in_bands(x, weight, bias=None):
    """Whether the gradient is computed in bands."""
    return 'DepthwiseConv' in type(depthwise_conv(x, weight, bias).grad_fn).__name__


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('memory', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('kernel', [(5, 5), (7, 7), (3, 9), (1, 5), (5, 3)])
def test_gradients_are_those_of_float64(kernel, memory, bias):
    inputs = tensors(kernel, bias=bias)
    inputs[0] = inputs[0].detach().to(memory_format=memory).requires_grad_()
    exact = [x.detach().double().requires_grad_() for x in inputs]
    assert in_bands(*inputs) == (kernel[1] > 3)
    out, expected = depthwise_conv(*inputs), plain(*exact)
    torch.testing.assert_close(out, expected.float())
    grad = torch.randn_like(expected)
    gradients = torch.autograd.grad(out, inputs, grad.float())
    for found, right in zip(gradients, torch.autograd.grad(expected, exact, grad), strict=True):
        torch.testing.assert_close(found, right.float())


def test_second_derivatives_are_right():
    inputs = tensors((1, 5), torch.float64)
    assert torch.autograd.gradgradcheck(depthwise._DepthwiseConv.apply, inputs, fast_mode=True)


@pytest.mark.parametrize('bias', [True, False])
def test_forward_derivatives_are_right(bias):
    inputs = tensors((1, 5), torch.float64, bias)
    conv = lambda *args: depthwise._DepthwiseConv.apply(*args, *[None] * (not bias))  # noqa: E731
    assert torch.autograd.gradcheck(conv, inputs, check_forward_ad=True, fast_mode=True)
    with torch.autograd.forward_ad.dual_level():
        weight = torch.autograd.forward_ad.make_dual(inputs[1], torch.ones_like(inputs[1]))
        out = depthwise_conv(inputs[0].float(), weight.float())
        derivative = torch.autograd.forward_ad.unpack_dual(out).tangent
    expected = plain(inputs[0], torch.ones_like(inputs[1])).float()
    torch.testing.assert_close(derivative, expected)


@pytest.mark.parametrize('frozen', [0, 1, 2])
def test_what_is_frozen_gets_no_gradient(frozen):
    inputs = tensors((5, 5))
    inputs[frozen].requires_grad_(False)
    depthwise_conv(*inputs).sum().backward()
    assert [x.grad is None for x in inputs] == [i == frozen for i in range(3)]


def test_gradients_of_each_sample():
    x, *layer = tensors((5, 5))
    loss = lambda weight, sample: depthwise_conv(sample[None], weight).square().sum()  # noqa: E731
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(layer[0].detach(), x.detach())
    for sample, found in zip(x.detach(), each, strict=True):
        weight = layer[0].detach().requires_grad_()
        plain(sample[None], weight).square().sum().backward()
        torch.testing.assert_close(found, weight.grad)


def test_others_get_torchs_own_convolution():
    x, weight, bias = tensors((5, 5))
    assert in_bands(x, weight, bias)
    with use_backend('torch'):
        assert not in_bands(x, weight, bias)
    with torch.autocast('cpu', torch.bfloat16):
        assert not in_bands(x, weight, bias)
    assert not in_bands(x.double(), weight.double(), bias.double())
    with torch.no_grad():
        assert depthwise_conv(x, weight, bias).grad_fn is None
    exported = torch.export.export(Module(weight.detach()), (x.detach(),)).graph
    assert any(node.target is torch.ops.aten.conv2d.default for node in exported.nodes)


class Module(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x):
        return depthwise_conv(x, self.weight)


def test_the_local_enhancement_trains_by_it(monkeypatch):
    bands = []
    in_bands = depthwise._gradient_in_bands
    monkeypatch.setattr(
        depthwise, '_gradient_in_bands', lambda *a: bands.append(a[0].shape) or in_bands(*a)
    )
    cfg = dict(type='MirrorAttention', lepe_kernel=5)
    attention = build_attention(cfg, embed_dims=8, num_heads=2)
    attention(torch.randn(2, 12, 8), (3, 4)).sum().backward()
    assert bands == [(2, 8, 3, 4)]
