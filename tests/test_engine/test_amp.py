"""Mixed precision: bfloat16 on any machine, through mmcv's operators too."""

import pytest
import torch
from mmcv.ops import RoIAlign, batched_nms
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine._strategy import FSDPStrategy as MMEngineFSDPStrategy
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from mirrorla_mm.engine import amp, prepare
from mirrorla_mm.engine.sharded import FSDPStrategy


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


@pytest.mark.parametrize('kind', ['AmpOptimWrapper', 'mmengine.AmpOptimWrapper', AmpOptimWrapper])
@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_mmengine_s_mixed_precision_is_ours_on_a_cpu_and_stays_elsewhere(kind, device, monkeypatch):
    monkeypatch.setattr(prepare, 'get_device', lambda: device)
    cfg = Config(
        dict(
            work_dir='w',
            train_cfg=dict(max_iters=1),
            train_dataloader=dict(sampler=dict(type='InfiniteSampler'), dataset={}),
            optim_wrapper=dict(type=kind, dtype='float16'),
        )
    )
    prepare.prepare_training(cfg)
    expected = 'mirrorla_mm.AmpOptimWrapper' if device == 'cpu' else kind
    assert cfg.optim_wrapper == dict(type=expected, dtype='float16')


def test_a_wrapper_of_the_user_s_own_is_no_mixed_precision_of_ours():
    assert not any(map(amp.is_amp, ('OptimWrapper', 'MyAmpOptimWrapper', OptimWrapper, None)))


@pytest.mark.parametrize('kind', ['AmpOptimWrapper', 'mirrorla_mm.AmpOptimWrapper'])
def test_shards_scale_their_loss_together(kind, monkeypatch):
    monkeypatch.setattr(
        MMEngineFSDPStrategy, 'build_optim_wrapper', lambda self, wrapper, model=None: wrapper
    )
    build = object.__new__(FSDPStrategy).build_optim_wrapper
    assert build(dict(type=kind))['use_fsdp'] is True
    assert build(dict(type=kind, use_fsdp=False))['use_fsdp'] is False
    assert 'use_fsdp' not in build(dict(type='OptimWrapper'))


def test_roi_align_takes_bfloat16_forwards_and_backwards():
    amp.let_mmcv_take_bfloat16()
    align = RoIAlign(2)
    rois = torch.tensor([[0.0, 1.0, 1.0, 6.0, 7.0]])
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    half = image.detach().bfloat16().requires_grad_()
    full, found = align(image, rois), align(half, rois.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, full, rtol=0.02, atol=0.01)
    full.sum().backward()
    found.sum().backward()
    assert half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(half.grad.float(), image.grad, rtol=0.02, atol=0.01)


def test_nms_takes_bfloat16():
    amp.let_mmcv_take_bfloat16()
    boxes = torch.tensor([[0.0, 0, 8, 8], [1, 1, 9, 9], [20, 20, 30, 30]]).bfloat16()
    scores = torch.tensor([0.5, 0.75, 0.25]).bfloat16()
    kept, found = batched_nms(boxes, scores, torch.zeros(3), dict(type='nms', iou_threshold=0.5))
    assert found.tolist() == [1, 2]
    torch.testing.assert_close(kept[:, 4].float(), scores[found].float())


def test_regions_are_not_rounded_to_bfloat16():
    amp.let_mmcv_take_bfloat16()
    extractor = SingleRoIExtractor(
        roi_layer=dict(type='RoIAlign', output_size=2), out_channels=1, featmap_strides=[4, 8]
    )
    ramp = torch.arange(512.0).expand(1, 1, 4, 512)
    levels = (ramp.bfloat16(), ramp[..., ::2].bfloat16())
    rois = torch.tensor([[0.0, 1601.0, 0.0, 1609.0, 8.0], [0.0, 1602.0, 0.0, 1610.0, 8.0]])
    first, second = extractor(levels, rois)
    assert first.dtype == torch.float32
    assert (first != second).any()  # in bfloat16 both are at 1600


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
