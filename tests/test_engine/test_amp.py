"""Mixed precision: bfloat16 on any machine, through mmcv's operators too."""

import pytest
import torch
from mmcv.ops import RoIAlign
from mmengine.optim import OptimWrapper

from mirrorla_mm.engine import amp


def wrapper(**options) -> OptimWrapper:
    layer = torch.nn.Linear(2, 2)
    return amp.amp_optim_wrapper(optimizer=torch.optim.SGD(layer.parameters(), lr=1.0), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
@pytest.mark.parametrize(
    ('dtype', 'computed'), [('bfloat16', torch.bfloat16), (None, torch.float32)]
)
def test_cpu_computes_in_bfloat16_or_float32(dtype, computed):
    model = torch.nn.Conv2d(1, 1, 1)
    with wrapper(dtype=dtype).optim_context(model):
        assert model(torch.rand(1, 1, 2, 2)).dtype == computed
    assert model(torch.rand(1, 1, 2, 2)).dtype == torch.float32
    assert model.weight.dtype == torch.float32


def test_roi_align_takes_bfloat16_forwards_and_backwards():
    amp.let_mmcv_take_bfloat16()
    align = RoIAlign(2)
    rois = torch.tensor([[0.0, 1.0, 1.0, 6.0, 7.0]])
    picture = torch.rand(1, 3, 8, 8, requires_grad=True)
    half = picture.detach().bfloat16().requires_grad_()
    full, found = align(picture, rois), align(half, rois.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, full, rtol=0.02, atol=0.01)
    full.sum().backward()
    found.sum().backward()
    assert half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(half.grad.float(), picture.grad, rtol=0.02, atol=0.01)


def test_operator_gets_float32_for_bfloat16_and_nothing_else_is_cast():
    seen = []

    def operator(x, target):
        seen.append((x.dtype, target.dtype))
        return x

    cast = amp._in_float32(operator)
    target = torch.zeros(2, dtype=torch.long)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        cast(torch.zeros(2, dtype=dtype), target)
    assert seen == [(torch.float32, torch.long)] + [
        (dtype, torch.long) for dtype in (torch.float16, torch.float32)
    ]
