import itertools

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mirrorla_mm.ops import strips, use_backend
from mirrorla_mm.ops.strips import Rows, at_once, by_strips, conv_rows, or_by_strips, row_strips


@pytest.mark.parametrize('kernel, stride', [(3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize('height', [1, 2, 13])
def test_rows_of_a_convolution(kernel, stride, height):
    conv = nn.Conv2d(4, 4, kernel, stride, padding=kernel // 2, groups=2).double()
    x = torch.randn(1, 4, height, 6, dtype=torch.float64)
    expected = conv(x)
    for rows in itertools.starmap(Rows, itertools.combinations(range(expected.shape[2] + 1), 2)):
        near = rows.read_by(kernel, stride, height)
        options = dict(stride=stride, groups=2)
        part = x[:, :, slice(*near)]
        out = conv_rows(part, conv.weight, conv.bias, rows, height, near.start, **options)
        torch.testing.assert_close(out, expected[:, :, slice(*rows)])
        whole = conv_rows(x, conv.weight, conv.bias, rows, height, **options)
        torch.testing.assert_close(whole, expected[:, :, slice(*rows)])


@pytest.mark.parametrize('height, row_bytes', [(1, 1), (7, 1 << 30), (200, 286720), (5, 0)])
def test_strips_cover_all_rows_once(height, row_bytes):
    cut = row_strips(height, row_bytes)
    assert [row for strip in cut for row in range(*strip)] == list(range(height))
    assert all(start < stop for start, stop in cut)


@pytest.mark.parametrize(
    'height, row_bytes, limit', list(itertools.product((1, 5, 7, 300), (1, 2, 37), (1, 5, 900)))
)
def test_strips_are_the_fewest_that_fit(height, row_bytes, limit, monkeypatch):
    monkeypatch.setattr(strips, 'STRIP_BYTES', limit)
    heights = [stop - start for start, stop in row_strips(height, row_bytes)]
    fit = max(limit // row_bytes, 1)  # A row is not cut.
    assert at_once(row_bytes) == fit
    assert max(heights) <= fit and max(heights) - min(heights) <= 1
    assert (len(heights) - 1) * fit < height == sum(heights)


def test_tokens_of_rows_are_row_major():
    grid = torch.arange(35).view(5, 7)
    assert torch.equal(grid.flatten()[Rows(1, 4).tokens(7)], grid[1:4].flatten())


@pytest.mark.parametrize('bfloat16', [True, False])
def test_strips_are_for_inference_in_what_the_processor_computes(bfloat16, monkeypatch):
    monkeypatch.setattr(strips, 'has_bfloat16', lambda: bfloat16)
    x = torch.rand(1)
    assert not by_strips(x)
    with torch.no_grad():
        assert by_strips(x) and by_strips(x.double())
        assert not by_strips(x.half())
        assert not by_strips(x.to('meta'))
        assert by_strips(x.bfloat16()) == bfloat16
        with torch.autocast('cpu', torch.bfloat16):
            assert by_strips(x) == bfloat16
            assert by_strips(x.double())
        with torch.autocast('cpu', torch.float16):
            assert not by_strips(x)
        with use_backend('torch'):
            assert not by_strips(x)


def test_the_fast_form_computes_in_autocast_s_dtype(monkeypatch):
    monkeypatch.setattr(strips, 'has_bfloat16', lambda: True)
    seen = []

    class Layer(nn.Module):
        @or_by_strips(lambda module, x: seen.append((x.dtype, torch.is_autocast_enabled('cpu'))))
        def forward(self, x):
            raise AssertionError

    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        Layer().eval()(torch.zeros(1))
    assert seen == [(torch.bfloat16, False)]


def test_a_training_module_keeps_its_plain_form():
    class Layer(nn.Module):
        @or_by_strips(lambda module, x: x + 2)
        def forward(self, x):
            return x + 1

    layer, x = Layer(), torch.zeros(1)
    with torch.no_grad():
        assert layer(x) == 1 and layer.eval()(x) == 2
    assert layer(x) == 1


@torch.no_grad()
def test_fake_tensors_and_the_form_for_graphs_have_no_strips():
    assert by_strips(torch.ones(2)) and by_strips(nn.Parameter(torch.ones(2)))
    with FakeTensorMode():
        assert not by_strips(torch.ones(2))
    with use_backend('graph'):
        assert not by_strips(torch.ones(2))
