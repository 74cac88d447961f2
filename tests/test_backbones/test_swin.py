import pytest
import torch
from mmdet.models.backbones.swin import SwinTransformer

from mirrorla_mm.backbones import LinearSwin
from mirrorla_mm.backbones.upstream import window_lengths
from mirrorla_mm.converters import ConversionError, convert_swin_pvt
from tests.official_files import classify

SMALL = dict(embed_dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8))


@pytest.mark.parametrize('name', ['flatten_swin', 'polaformer_swin'])
def test_converted_checkpoint_gives_the_authors_outputs(oracle, name):
    reference = oracle(name)
    converted = convert_swin_pvt(reference['state_dict'])
    assert converted.backbone['layout'] == ('linear', 'linear', 'softmax', 'softmax')
    for x, y in zip(reference['x'], reference['y']):
        torch.testing.assert_close(classify(converted, x), y, rtol=0, atol=1e-5)


def test_a_file_that_does_not_fit_is_refused_by_name(oracle):
    state_dict = oracle('flatten_swin')['state_dict']
    broken = {k: v for k, v in state_dict.items() if k != 'layers.2.blocks.1.mlp.fc1.bias'}
    with pytest.raises(ConversionError, match=r'missing .*stages.2.blocks.1.ffn.layers.0.0.bias'):
        convert_swin_pvt(broken)
    with pytest.raises(ConversionError, match=r"unexpected 'surprise'"):
        convert_swin_pvt(state_dict | {'surprise': torch.zeros(1)})
    with pytest.raises(ConversionError, match='neither a Swin nor a PVT'):
        convert_swin_pvt({'stem.0.weight': torch.zeros(1)})


def test_without_linear_stages_it_is_the_upstream_backbone():
    upstream = SwinTransformer(**SMALL)
    upstream.eval()
    model = LinearSwin(**SMALL, layout=('softmax',) * 4).eval()
    model.load_state_dict(upstream.state_dict())
    # Large enough for more than 7x7 tokens in every stage: on fewer, the upstream class shifts its
    # windows where the original does not.
    x = torch.rand(1, 3, 260, 300)
    for ours, theirs in zip(model(x), upstream(x)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize('type', ['FLattenAttention', 'PolaAttention'])
def test_an_upstream_checkpoint_loads_for_all_that_is_common(tmp_path, type):
    upstream = SwinTransformer(**SMALL)
    file = tmp_path / 'swin.pth'
    weights = {f'backbone.{key}': value for key, value in upstream.state_dict().items()}
    torch.save({'state_dict': weights}, file)
    model = LinearSwin(
        **SMALL, attn_cfg=dict(type=type), init_cfg=dict(type='Pretrained', checkpoint=str(file))
    )
    model.init_weights()
    ours, theirs = model.state_dict(), upstream.state_dict()
    projection = 'stages.0.blocks.0.attn.w_msa.qkv.weight'
    assert torch.equal(ours[projection][:48], theirs[projection])
    for key in ours.keys() & theirs.keys() - {projection}:
        if ours[key].shape == theirs[key].shape:
            assert torch.equal(ours[key], theirs[key]), key


def test_tables_of_another_window_are_interpolated(tmp_path):
    def plane(places):
        return places[:, None] + 10 * places

    upstream = SwinTransformer(**SMALL, window_size=4)
    heads = torch.arange(1.0, 9)
    small = upstream.stages[3].blocks[0].attn.w_msa.relative_position_bias_table
    small.data = (plane(torch.arange(7.0))[..., None] * heads).flatten(0, 1)
    torch.save(upstream.state_dict(), file := tmp_path / 'swin.pth')
    model = LinearSwin(**SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(file)))
    model.init_weights()
    table = model.stages[3].blocks[0].attn.w_msa.relative_position_bias_table
    assert table.shape == (169, 8)
    # Places along the sides of a table of 7x7, where all that a cubic needs lies within it.
    places = ((torch.arange(13) + 0.5) * 7 / 13 - 0.5)[3:10]
    error = table.view(13, 13, 8)[3:10, 3:10] / heads - plane(places)[..., None]
    # torch's cubic is no more than a tenth of a place off a plane.
    assert error.abs().max() < 0.1 * (1 + 10)


def test_windows_cover_the_map_without_padding():
    for length in range(1, 40):
        for window in (None, 1, 4, 7):
            for shift in (False, True):
                lengths = window_lengths(length, window, shift)
                assert sum(lengths) == length and min(lengths) > 0
                assert window is None or max(lengths) <= window
    assert window_lengths(10, 4, False) == [3, 3, 4]
    assert window_lengths(10, 4, True) == [2, 3, 3, 2]
    assert window_lengths(4, 4, True) == [4]


def test_a_window_sees_its_own_tokens_alone():
    model = LinearSwin(**SMALL, attn_cfg=dict(type='EfficientAttention'), linear_window=3).eval()
    attention = model.stages[0].blocks[0].attn
    x = torch.randn(1, 25, 16)
    changed = x.clone()
    changed.view(5, 5, 16)[3:, 3:] += 1  # Windows of 5x5 tokens: rows and columns 0-1 and 2-4.
    delta = (attention(x, (5, 5)) - attention(changed, (5, 5))).view(5, 5, 16).abs().amax(-1) > 1e-6
    assert delta[2:, 2:].all() and not delta[:2].any() and not delta[:, :2].any()


def test_every_other_block_of_a_linear_stage_shifts_its_windows():
    model = LinearSwin(**{**SMALL, 'depths': (3, 1, 2, 1)}, layout='linear', linear_window=5)
    shifts = [[block.attn.shift for block in stage.blocks] for stage in model.stages]
    assert shifts == [[False, True, False], [False], [False, True], [False]]


def test_position_tables_have_the_size_of_the_windows():
    options = dict(attn_cfg=dict(type='FLattenAttention'), layout='linear', linear_window=5)
    model = LinearSwin(**SMALL, **options, pretrain_img_size=(64, 96))
    sizes = [tuple(stage.blocks[0].attn.w_msa.position.shape[1:]) for stage in model.stages]
    assert sizes == [(5, 5), (5, 5), (4, 5), (2, 3)]


def test_linear_blocks_drop_as_often_as_upstreams():
    model = LinearSwin(**SMALL, layout='linear', drop_rate=0.25, drop_path_rate=0.4)
    drops = [block.attn.drop for stage in model.stages for block in stage.blocks]
    assert [drop.p for drop, _ in drops] == [0.25] * 5
    assert [path.drop_prob for _, path in drops] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="Unknown arch 'x'; choose from t, s, b"):
        LinearSwin('x')
    with pytest.raises(
        ValueError, match='attn_cfg needs one dict, or one for each of the 4 stages'
    ):
        LinearSwin(**SMALL, attn_cfg=[None])


@pytest.mark.parametrize('arch', ['t', 's', 'b'])
def test_arch_is_the_upstream_arch(arch):
    from mirrorla_mm.analysis.flops import empty_parameters

    with empty_parameters():
        params = sum(p.numel() for p in LinearSwin(arch, layout=('softmax',) * 4).parameters())
    # Liu et al., Tab. 1, without the classifier; with the norms of three more outputs.
    published = {'t': 28.3, 's': 49.6, 'b': 87.8}[arch] - (1.025 if arch == 'b' else 0.769)
    assert params / 1e6 == pytest.approx(published, abs=0.06)


def test_all_that_an_arch_holds_counts():
    sizes = dict(depths=(1, 1, 1, 1), num_heads=(3, 6, 12, 24), pretrain_img_size=448)
    given = LinearSwin(**sizes, attn_cfg=dict(type='FLattenAttention'))
    held = LinearSwin(sizes, attn_cfg=dict(type='FLattenAttention'))
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (given, held)]
    assert shapes[0] == shapes[1]


def test_stages_freeze_and_mode_returns_the_model():
    model = LinearSwin(**SMALL, frozen_stages=2).train()
    assert not any(p.requires_grad for p in model.stages[1].parameters())
    assert all(p.requires_grad for p in model.stages[2].parameters())
    assert model.eval() is model


def test_each_stage_has_the_method_it_asks_for():
    names = ('FLattenAttention', 'AgentAttention', 'PolaAttention')
    model = LinearSwin(
        embed_dims=8,
        depths=(2, 1, 1, 1),
        num_heads=(1, 2, 2, 4),
        attn_cfg=[*(dict(type=name) for name in names), None],
        layout=('linear', 'linear', 'linear', 'softmax'),
    )
    found = [{type(block.attn.w_msa).__name__ for block in stage.blocks} for stage in model.stages]
    assert found == [*({name} for name in names), {'WindowMSA'}]
