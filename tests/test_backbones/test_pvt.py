import pytest
import torch
from mmdet.models.backbones.pvt import PyramidVisionTransformer

from mirrorla_mm.backbones import LinearPVT
from mirrorla_mm.converters import ConversionError, convert_swin_pvt
from tests.test_backbones.test_swin import classify

SMALL = dict(embed_dims=16, num_layers=(1, 1, 2, 1), num_heads=(1, 2, 3, 4), mlp_ratios=(2,) * 4)


@pytest.mark.parametrize('name', ['flatten_pvt', 'polaformer_pvt'])
def test_converted_checkpoint_gives_the_authors_outputs(oracle, name):
    reference = oracle(name)
    converted = convert_swin_pvt(reference['state_dict'])
    assert converted.backbone['linear_sr_ratios'] == (8, 4, 2, 1)
    for x, y in zip(reference['x'], reference['y']):
        torch.testing.assert_close(classify(converted, x), y, rtol=0, atol=2e-5)


def test_a_file_that_does_not_fit_is_refused_by_name(oracle):
    state_dict = oracle('polaformer_pvt')['state_dict']
    with pytest.raises(ConversionError, match="'block2.0.attn.kv.weight' is missing"):
        convert_swin_pvt({k: v for k, v in state_dict.items() if k != 'block2.0.attn.kv.weight'})


def test_without_linear_stages_it_is_the_stock():
    stock = PyramidVisionTransformer(**SMALL).eval()
    model = LinearPVT(**SMALL, layout=('softmax',) * 4).eval()
    model.load_state_dict(stock.state_dict())
    x = torch.rand(1, 3, 96, 70)
    for ours, theirs in zip(model(x), stock(x)):
        assert torch.equal(ours, theirs)


def test_a_stock_checkpoint_gives_the_stock_when_the_method_is_softmax():
    """Softmax attention through our own modules, so every renamed parameter has to be right."""
    stock = PyramidVisionTransformer(**SMALL).eval()
    attn_cfg = dict(type='SoftmaxAttention')
    model = LinearPVT(**SMALL, attn_cfg=attn_cfg, linear_sr_ratios=(8, 4, 2, 1)).eval()
    model.load_state_dict(stock.state_dict())
    x = torch.rand(1, 3, 96, 70)
    for ours, theirs in zip(model(x), stock(x)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize('type', ['AgentAttention', 'PolaAttention'])
def test_a_stock_checkpoint_loads_for_all_that_is_common(type):
    stock = PyramidVisionTransformer(**SMALL)
    model = LinearPVT(**SMALL, attn_cfg=dict(type=type))
    result = model.load_state_dict(stock.state_dict(), strict=False)
    assert not result.unexpected_keys
    ours, theirs = model.layers[0][1][1].attn.attn, stock.layers[0][1][1].attn.attn
    assert torch.equal(ours.qkv.weight[:48], theirs.in_proj_weight)
    assert torch.equal(ours.proj.weight, theirs.out_proj.weight)


@pytest.mark.parametrize('arch, published', [('t', 13.2), ('s', 24.5), ('m', 44.2), ('l', 61.4)])
def test_arch_is_the_published_arch(arch, published):
    from mirrorla_mm.analysis.flops import empty_parameters

    with empty_parameters():
        params = sum(p.numel() for p in LinearPVT(arch, layout=('softmax',) * 4).parameters())
    assert params / 1e6 + 0.513 == pytest.approx(published, abs=0.1)
