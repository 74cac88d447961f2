"""The model on mmengine's runner, and images in tiles."""

import pytest
import torch
from mmengine.structures import BaseDataElement

from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.registry import MODELS
from mirrorla_mm.restoration.losses import CharbonnierLoss
from mirrorla_mm.restoration.restorer import Restorer
from mirrorla_mm.restoration.tiling import enlarge, mean_of_flips, tile_spans
from tests.test_restoration.toy import TOY, toy_host


class Nearest(torch.nn.Module):
    """Enlarges by repeating pixels: what tiles must not change."""

    upscale, window_size = 2, 4

    def forward(self, x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def batch(size=8):
    samples = [
        BaseDataElement(gt_img=torch.randint(256, (3, 2 * size, 2 * size), dtype=torch.uint8))
        for _ in range(2)
    ]
    return dict(inputs=torch.randint(256, (2, 3, size, size)).byte(), data_samples=samples)


@pytest.fixture
def restorer():
    return Restorer(dict(TOY, type='mirrorla_mm.DCTLSA', upscale=2))


def test_modes_agree(restorer):
    data = batch()
    packed = restorer.data_preprocessor(data)
    torch.testing.assert_close(packed['inputs'], data['inputs'] / 255)
    restorer.eval()
    with torch.no_grad():
        images = restorer(packed['inputs'])
        samples = restorer.test_step(data)
        loss = restorer(**packed, mode='loss')['loss']
    assert samples[0].pred_img.equal(images[0].clamp(0, 1))
    truth = torch.stack([sample.gt_img for sample in samples]) / 255
    torch.testing.assert_close(loss, (images - truth).abs().mean())
    assert restorer(packed['inputs'], mode='predict')[1].pred_img.shape == (3, 16, 16)
    with pytest.raises(ValueError, match="Unknown mode 'x'"):
        restorer(packed['inputs'], mode='x')


def test_options_of_testing_reach_the_network(restorer):
    data = batch(12)
    restorer.eval().test_cfg = dict(tile=8, overlap=4, self_ensemble=True)
    expected = enlarge(restorer.backbone, data['inputs'] / 255, **restorer.test_cfg)
    assert restorer.test_step(data)[0].pred_img.equal(expected[0].clamp(0, 1))


def test_charbonnier_is_smooth_where_images_agree():
    x = torch.tensor([0.0, 0.3], dtype=torch.float64, requires_grad=True)
    loss = MODELS.build(dict(type='CharbonnierLoss', eps=0.4))
    out = loss(x, torch.zeros_like(x))
    assert out.item() == pytest.approx((0.4 + 0.5) / 2)
    assert torch.autograd.grad(out, x)[0].tolist() == pytest.approx([0, 0.3])
    assert CharbonnierLoss()(x, x.detach()).item() == pytest.approx(1e-3)


@pytest.mark.parametrize('size', [(3, 50), (16, 16), (17, 41), (64, 23)])
@pytest.mark.parametrize(('tile', 'overlap'), [(16, 8), (16, 0), (8, 4)])
def test_tiles_cover_an_image_once(size, tile, overlap):
    x = torch.rand(2, 3, *size)
    assert torch.equal(enlarge(Nearest(), x, tile, overlap), Nearest()(x))


@pytest.mark.parametrize('length', [1, 16, 17, 31, 32, 100])
def test_tiles_start_where_windows_do_and_none_is_small(length):
    spans = list(tile_spans(length, 16, 8, 4))
    kept = [number for _, part in spans for number in range(part.start, part.stop)]
    assert kept == list(range(length))
    for seen, part in spans:
        assert seen.start % 4 == 0 and seen.start <= part.start and part.stop <= seen.stop
        assert min(length, 16) <= seen.stop - seen.start < 16 + 4
    for (first, _), (second, _) in zip(spans, spans[1:]):
        assert first.stop - second.start >= 8


@torch.no_grad()
def test_a_tile_sees_the_windows_of_the_whole_image():
    # Without shifted windows and convolutions, windows are independent and tiles exact.
    model = toy_host(num_groups=1).double()
    for layer in model.groups[0]:
        layer.blocks[1] = torch.nn.Identity()
        layer.blocks[0].local = torch.nn.Identity()
    for conv in (model.stem, model.tail, model.upsampler[0]):
        weight = torch.zeros_like(conv.weight)
        weight[..., 1, 1] = conv.weight[..., 1, 1]
        conv.weight.copy_(weight)
    x = torch.rand(1, 3, 22, 33, dtype=torch.float64)
    torch.testing.assert_close(enlarge(model, x, 16, 8), model(x))


@pytest.mark.parametrize(('tile', 'overlap'), [(6, 4), (8, 2), (8, 8), (8, -4), (0, 0)])
def test_tiles_that_cut_windows_are_refused(tile, overlap):
    with pytest.raises(UserError, match='multiples of the window of 4'):
        enlarge(Nearest(), torch.rand(1, 3, 9, 9), tile, overlap)


@torch.no_grad()
def test_self_ensemble_is_the_mean_of_8_and_keeps_what_is_symmetric():
    x = torch.rand(1, 3, 10, 14)
    torch.testing.assert_close(mean_of_flips(Nearest(), x), Nearest()(x))
    calls = []
    mean_of_flips(lambda y: calls.append(y) or y, x)
    assert len({call.contiguous().numpy().tobytes() for call in calls}) == 8
    model = toy_host().double()
    x = x.double()
    once = enlarge(model, x, self_ensemble=True)
    torch.testing.assert_close(enlarge(model, x.mT.flip(3), self_ensemble=True), once.mT.flip(3))
