import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmseg')

from mmengine.registry import DefaultScope

from mirrorla_mm.heads import EfficientViTHead
from tests.norms import with_statistics


@pytest.fixture(autouse=True)
def _scope_of_a_segmentor():
    """Where the head finds its loss, whatever scope an earlier test left."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def build(channels=16, **kwargs):
    return EfficientViTHead(
        in_channels=[16, 24, 32],
        channels=channels,
        num_classes=5,
        norm_cfg=dict(type='BN'),
        **kwargs,
    )


def pyramid(size=(32, 40)):
    return [
        torch.rand(2, c, -(-size[0] // s), -(-size[1] // s))
        for c, s in zip((8, 16, 24, 32), (1, 2, 4, 8))
    ]


@pytest.mark.parametrize('final_expand', [None, 4])
@pytest.mark.parametrize('size', [(32, 40), (33, 47)])
def test_logits_have_the_size_of_the_finest_input(final_expand, size):
    head = build(final_expand=final_expand).eval()
    inputs = pyramid(size)
    assert head(inputs).shape == (2, 5, *inputs[1].shape[2:])


def layer(module, x, act=True):
    """A convolution, its batch norm and, in most layers, the activation."""
    x = module.norm(module.conv(x))
    return x * F.relu6(x + 3) / 6 if act else x


@pytest.mark.parametrize('final_expand', [None, 4])
def test_logits_are_those_of_the_head_written_out(final_expand):
    head = with_statistics(build(final_expand=final_expand))
    inputs = pyramid()
    x = 0
    for lateral, feature in zip(head.laterals, inputs[1:]):
        feature = layer(lateral, feature, act=False)
        x = x + F.interpolate(feature, inputs[1].shape[2:], mode='bicubic')
    for expand, depthwise, reduce in head.blocks:
        x = x + layer(reduce, layer(depthwise, layer(expand, x)), act=False)
    if final_expand:
        x = layer(head.final, x)
    torch.testing.assert_close(head(inputs), head.conv_seg(x), rtol=1e-4, atol=1e-5)


# Width 96 on MirrorLA-T with 150 classes; width 128 on S; the wide layer for Cityscapes.
@pytest.mark.parametrize(
    'in_channels, channels, num_classes, final_expand, expected',
    [
        ([128, 256, 512], 96, 150, None, 13.7 - 13.35),
        ([128, 320, 512], 128, 150, None, 24.6 - 24.04),
        ([128, 320, 512], 128, 19, 4, 24.65 - 24.04),
    ],
)
def test_parameters_fill_the_published_totals(
    in_channels, channels, num_classes, final_expand, expected
):
    head = EfficientViTHead(
        in_channels=in_channels,
        channels=channels,
        num_classes=num_classes,
        final_expand=final_expand,
    )
    assert sum(p.numel() for p in head.parameters()) / 1e6 == pytest.approx(expected, abs=0.06)


def test_every_parameter_learns():
    head = build(final_expand=4)
    head([x.requires_grad_() for x in pyramid()]).square().sum().backward()
    assert [n for n, p in head.named_parameters() if p.grad is None] == []


def test_coarse_features_reach_the_logits():
    head = build().eval()
    inputs = pyramid()
    changed = [*inputs[:3], inputs[3] + 1]
    assert not torch.allclose(head(inputs), head(changed))
    ignored = [inputs[0] + 1, *inputs[1:]]
    torch.testing.assert_close(head(inputs), head(ignored))
