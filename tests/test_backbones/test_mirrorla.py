import pytest
import torch

import mirrorla_mm
from mirrorla_mm.attention import MirrorAttention, SoftmaxAttention
from mirrorla_mm.backbones import RAVLT, MirrorLA
from tests.archs import TOY


def kinds(model):
    return [type(stage[0].attn) for stage in model.stages]


def test_layouts_place_the_mirror():
    assert kinds(MirrorLA(TOY, 'linear')) == [MirrorAttention] * 4
    assert kinds(MirrorLA(TOY)) == [MirrorAttention] * 2 + [SoftmaxAttention] * 2
    assert MirrorLA(TOY, 'paper').layout == MirrorLA(TOY, 'hybrid').layout == MirrorLA(TOY).layout
    mixed = ('softmax', 'linear', 'softmax', 'linear')
    assert kinds(MirrorLA(TOY, mixed)) == [SoftmaxAttention, MirrorAttention] * 2


def test_only_reflections_distinguish_it_from_its_host():
    ours, host = MirrorLA(TOY, 'linear').state_dict(), RAVLT(TOY, 'linear').state_dict()
    assert set(host) < set(ours)
    assert {key.split('.')[-1] for key in set(ours) - set(host)} == {'theta', 'u'}


def test_ablation_switches_reach_every_linear_stage():
    model = MirrorLA(
        TOY, 'linear', reflection=dict(cross_head=False, lam=0.25, variance_aware=False)
    )
    for stage in model.stages:
        reflection = stage[0].attn.reflection
        assert reflection.u is None
        assert reflection.options['lam'] == 0.25
        assert not reflection.options['variance_aware']


def test_head_dimension_has_to_suit_rope():
    with pytest.raises(ValueError, match='multiple of 4, got 9'):
        MirrorLA({**TOY, 'embed_dims': (9, 16, 24, 32)})


def test_outputs_of_one_image_do_not_depend_on_its_batch():
    model = MirrorLA(TOY, 'linear').eval()
    x = torch.rand(3, 3, 37, 45)
    for together, alone in zip(model(x), model(x[1:2])):
        torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_another_attention_is_refused_with_the_host_that_takes_it():
    with pytest.raises(ValueError, match=r'use RAVLT\(attn_cfg=...\)'):
        MirrorLA(TOY, attn_cfg=dict(type='RALA'))


def test_backbones_are_found_in_the_package_itself():
    assert mirrorla_mm.MirrorLA is MirrorLA and mirrorla_mm.RAVLT is RAVLT
    with pytest.raises(AttributeError, match="no attribute 'MirorLA'"):
        mirrorla_mm.MirorLA  # noqa: B018
