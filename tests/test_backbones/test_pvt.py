import pytest
import torch
import torch.nn.functional as F
from mmdet.models.backbones.pvt import PyramidVisionTransformer
from mmengine.registry import MODELS

from mirrorla_mm.backbones import LinearPVT
from mirrorla_mm.converters import ConversionError, convert_swin_pvt
from mirrorla_mm.engine import CheckpointError
from tests.official_files import classify

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


def test_without_linear_stages_it_is_the_upstream_backbone():
    norm_cfg = dict(type='LN', eps=1e-6)
    upstream = PyramidVisionTransformer(**SMALL, norm_cfg=norm_cfg).eval()
    model = LinearPVT(**SMALL, layout=('softmax',) * 4, norm_cfg=norm_cfg).eval()
    model.load_state_dict(upstream.state_dict())
    x = torch.rand(1, 3, 96, 70)
    for ours, theirs in zip(model(x), upstream(x)):
        assert torch.equal(ours, theirs)


def test_an_upstream_checkpoint_gives_the_upstream_outputs_when_the_method_is_softmax():
    """Softmax attention through our own modules, so every renamed parameter has to be right."""
    norm_cfg = dict(type='LN', eps=1e-5)
    upstream = PyramidVisionTransformer(**SMALL, norm_cfg=norm_cfg).eval()
    attn_cfg = dict(type='SoftmaxAttention')
    model = LinearPVT(
        **SMALL, attn_cfg=attn_cfg, linear_sr_ratios=(8, 4, 2, 1), norm_cfg=norm_cfg
    ).eval()
    model.load_state_dict(upstream.state_dict())
    x = torch.rand(1, 3, 96, 70)
    for ours, theirs in zip(model(x), upstream(x)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_a_stage_without_a_reduction_of_its_own_is_refused():
    with pytest.raises(ValueError, match='linear_sr_ratios needs a value for each of the 4 stages'):
        LinearPVT(**SMALL, linear_sr_ratios=(8, 4))


def test_linear_blocks_drop_as_often_as_upstreams():
    model = LinearPVT(**SMALL, drop_rate=0.25, drop_path_rate=0.4)
    drops = [block.attn.drop for stage in model.layers for block in stage[1][1:]]
    assert [drop.p for drop, _ in drops] == [0.25] * 5
    assert [path.drop_prob for _, path in drops] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_arch_may_be_a_dict():
    sizes = dict(SMALL)
    arch = dict(num_layers=sizes.pop('num_layers'))
    assert len(LinearPVT(arch, **sizes).state_dict()) == len(LinearPVT(**SMALL).state_dict())


@pytest.mark.parametrize('type', ['AgentAttention', 'PolaAttention'])
def test_an_upstream_checkpoint_loads_for_all_that_is_common(type):
    upstream = PyramidVisionTransformer(**SMALL)
    model = LinearPVT(**SMALL, attn_cfg=dict(type=type))
    result = model.load_state_dict(upstream.state_dict(), strict=False)
    assert not result.unexpected_keys
    ours, theirs = model.layers[0][1][1].attn.attn, upstream.layers[0][1][1].attn.attn
    assert torch.equal(ours.qkv.weight[:48], theirs.in_proj_weight)
    assert torch.equal(ours.proj.weight, theirs.out_proj.weight)


def test_norms_that_the_authors_left_at_torchs_epsilon_have_it():
    model = LinearPVT(**SMALL, layout=('linear', 'softmax', 'linear', 'softmax'))
    for embedding, blocks, *_ in model.layers:
        assert embedding.norm.eps == 1e-5
        assert blocks[1].norm1.eps == 1e-6
    assert model.layers[1][1][1].attn.norm.eps == 1e-5


@pytest.mark.parametrize('name', ['flatten_pvt', 'polaformer_pvt'])
def test_dark_image_gives_the_authors_outputs(oracle, name):
    """On constant patches the norm's epsilon is what remains; the oracle's own input has none."""
    weights = oracle(name)['state_dict']
    converted = convert_swin_pvt(weights)
    model = MODELS.build(converted.backbone).eval()
    model.load_state_dict(
        {k.removeprefix('backbone.'): v for k, v in converted.state_dict.items() if 'head' not in k}
    )
    x = 1e-3 * torch.rand(1, 3, 64, 64)
    embedded, _ = model.layers[0][0](x)
    patches = F.conv2d(x, weights['patch_embed1.proj.weight'], weights['patch_embed1.proj.bias'], 4)
    expected = F.layer_norm(
        patches.flatten(2).transpose(1, 2),
        patches.shape[1:2],
        weights['patch_embed1.norm.weight'],
        weights['patch_embed1.norm.bias'],
        eps=1e-5,
    )
    torch.testing.assert_close(embedded, expected)


def test_twice_the_heads_are_half_the_channels_of_a_head():
    model = LinearPVT('t', embed_dims=32, num_heads=(2, 4, 10, 16), mlp_ratios=(8, 8, 4, 4))
    blocks = [stage[1][1].attn.attn for stage in model.layers]
    assert [b.embed_dims for b in blocks] == [64, 128, 320, 512]
    assert [b.num_heads for b in blocks] == [2, 4, 10, 16]


def pretrained(file, **options) -> LinearPVT:
    model = LinearPVT(
        **SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(file), **options.pop('init', {}))
    )
    model.init_weights()
    return model


@pytest.mark.parametrize('prefix', ['backbone.', 'backbone', None])
def test_checkpoint_of_a_whole_model_loads_with_and_without_the_prefix(tmp_path, prefix):
    source = LinearPVT(**SMALL).state_dict()
    weights = {f'backbone.{key}': value for key, value in source.items()}
    torch.save(dict(state_dict=weights | {'head.fc.bias': torch.ones(3)}), tmp_path / 'x.pth')
    loaded = pretrained(tmp_path / 'x.pth', init=dict(prefix=prefix)).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in source.items())


def test_checkpoint_of_another_model_is_refused(tmp_path):
    torch.save(dict(state_dict={'conv1.weight': torch.ones(3)}), tmp_path / 'resnet.pth')
    with pytest.raises(CheckpointError, match=r'resnet\.pth does not fit LinearPVT: \d+ of its'):
        pretrained(tmp_path / 'resnet.pth')
    pretrained(tmp_path / 'resnet.pth', init=dict(min_loaded=0))  # Meant all the same.
    with pytest.raises(CheckpointError, match=r"no entry begins with the prefix 'encoder\.'"):
        pretrained(tmp_path / 'resnet.pth', init=dict(prefix='encoder'))


def test_checkpoint_of_another_size_is_refused_and_names_its_origin(tmp_path):
    wide = LinearPVT(**{**SMALL, 'mlp_ratios': (3,) * 4}).state_dict()
    backbone = dict(mlp_ratios=(3,) * 4)
    torch.save(dict(meta=dict(backbone=backbone), state_dict=wide), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'ffn.* has the shape .*\(3, 3, 3, 3\)'):
        pretrained(tmp_path / 'x.pth')


@pytest.mark.parametrize('arch, published', [('t', 13.2), ('s', 24.5), ('m', 44.2), ('l', 61.4)])
def test_arch_is_the_published_arch(arch, published):
    from mirrorla_mm.analysis.flops import empty_parameters

    with empty_parameters():
        params = sum(p.numel() for p in LinearPVT(arch, layout=('softmax',) * 4).parameters())
    assert params / 1e6 + 0.513 == pytest.approx(published, abs=0.1)
