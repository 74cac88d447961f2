"""The host: the authors' outputs, counts to the digit, any attention."""

import math

import pytest
import torch
from torch import nn

from mirrorla_mm.analysis.flops import MacCounter, empty_parameters
from mirrorla_mm.attention import MirrorAttention
from mirrorla_mm.diffusion import DiT
from mirrorla_mm.diffusion.dit import sincos_positions
from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.ops import use_backend

from .toy import ATTENTIONS, TOY, toy_host


@pytest.mark.parametrize(
    ('name', 'attn_cfg', 'channels'),
    [('sit_toy', None, 4), ('polaformerpp_dit_toy', dict(type='PolaPPAttention'), 8)],
)
@pytest.mark.parametrize('grad', [True, False])
def test_output_is_the_authors(oracle_file, name, attn_cfg, channels, grad):
    oracle = torch.load(oracle_file(f'{name}.pth'), weights_only=True)
    model = DiT(**TOY, attn_cfg=attn_cfg).eval()
    model.load_state_dict(oracle['state_dict'])
    with torch.set_grad_enabled(grad):
        out = model(*oracle['x'])
    assert out.shape[1] == 8
    torch.testing.assert_close(out[:, :channels], oracle['y'][0], rtol=0, atol=1e-5)


def test_positions_are_those_of_the_authors(oracle_file):
    oracle = torch.load(oracle_file('sit_toy.pth'), weights_only=True)
    torch.testing.assert_close(DiT(**TOY).pos_embed.data, oracle['state_dict']['pos_embed'])


def test_positions_are_those_of_the_column_then_of_the_row():
    positions = sincos_positions(8, 5)
    row, column = 2, 3
    waves = [(math.sin(n), math.sin(n / 100), math.cos(n), math.cos(n / 100)) for n in (3, 2)]
    torch.testing.assert_close(positions[0, 5 * row + column], torch.tensor(waves).flatten())


def test_block_is_attention_and_network_each_modulated_and_gated():
    block = toy_host().double().blocks[0]
    x, condition = torch.randn(2, 64, 48).double(), torch.randn(2, 48).double()
    silu = condition * condition.sigmoid()
    shift1, scale1, gate1, shift2, scale2, gate2 = (
        part.unsqueeze(1) for part in block.adaLN_modulation[1](silu).split(48, dim=1)
    )

    def norm(x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    y = x + gate1 * block.attn(norm(x) * (1 + scale1) + shift1, (8, 8))
    hidden = block.mlp.fc1(norm(y) * (1 + scale2) + shift2)
    bend = (2 / math.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)
    expected = y + gate2 * block.mlp.fc2(hidden * (1 + bend.tanh()) / 2)
    torch.testing.assert_close(block(x, condition, (8, 8)), expected)


HELPED = dict(type='ReLUAttention', gate=True, lepe_kernel=5)


@pytest.mark.parametrize(
    ('attn_cfg', 'params'),
    [
        (None, 32_963_360),
        (dict(type='PolaPPAttention'), 34_875_680),
        (dict(HELPED, reflection={}), 32_963_360 + 12 * (749_760 - 591_360)),
    ],
)
def test_parameters_of_s2_to_the_digit(attn_cfg, params):
    with empty_parameters():
        model = DiT('s', attn_cfg=attn_cfg)
    assert sum(p.numel() for p in model.parameters()) == params
    assert model.pos_embed.numel() == 98_304


@pytest.mark.parametrize('patch', [2, 4, 8])
@pytest.mark.parametrize(
    ('arch', 'width', 'depth', 'millions'),
    [('s', 384, 12, 33), ('b', 768, 12, 130), ('l', 1024, 24, 458), ('xl', 1152, 28, 675)],
)
def test_parameters_of_every_size(arch, width, depth, millions, patch):
    with empty_parameters():
        model = DiT(arch, patch)
    counted = sum(p.numel() for p in model.parameters())
    block = 18 * width**2 + 15 * width
    embedders = width * (4 * patch**2 + 1) + width * (256 + width + 2) + 1001 * width
    final = 2 * width * (width + 1) + 8 * patch**2 * (width + 1)
    assert counted == depth * block + embedders + (32 // patch) ** 2 * width + final
    if patch == 2:  # DiT's paper, Tab. 4
        assert counted / 1e6 == pytest.approx(millions, abs=0.6)


def test_the_mirror_has_the_parameters_of_a_block_that_the_sibling_suggests():
    attention = MirrorAttention(384, 6, gate=True, lepe_kernel=5)
    assert sum(p.numel() for p in attention.parameters()) == 749_760


@pytest.mark.parametrize(
    ('attn_cfg', 'total'), [(None, 6.056), (dict(type='PolaPPAttention'), 6.24)]
)
def test_products_of_s2(attn_cfg, total):
    with empty_parameters():
        model = DiT('s', attn_cfg=attn_cfg)
    model.to('meta').eval()
    with use_backend('torch'), MacCounter(model) as counter:
        model(*model.example((32, 32), torch.device('meta')))
    assert counter.total / 1e9 == pytest.approx(total, abs=5e-4 if attn_cfg is None else 5e-3)
    if attn_cfg is None:
        assert counter.layers / 1e9 == pytest.approx(5.452, abs=5e-4)


@pytest.mark.parametrize('attn_cfg', ATTENTIONS.values(), ids=ATTENTIONS)
def test_any_attention_starts_at_zero_and_learns(attn_cfg):
    torch.manual_seed(0)
    model = DiT(**TOY, attn_cfg=attn_cfg)
    x, t, y = torch.randn(2, 4, 16, 16), torch.tensor([3, 999]), torch.tensor([0, 10])
    assert model(x, t, y).count_nonzero() == 0
    for block in model.blocks:
        for layer in block.modules():
            if isinstance(layer, nn.Linear) and layer.weight.count_nonzero():
                fan = sum(layer.weight.shape)
                assert layer.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.1)
                assert layer.bias is None or layer.bias.count_nonzero() == 0
    model = toy_host(attn_cfg=attn_cfg)
    model(x, t, y).square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_embedders_start_as_the_authors_do():
    model = DiT(**TOY)
    first, _, second = model.t_embedder.mlp
    for layer in (first, second, model.y_embedder.embedding_table):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.15)
    proj = model.x_embedder.proj
    bound = (6 / (4 * 2 * 2 + 48)) ** 0.5  # Xavier's, of a patch's numbers and the width.
    assert 0.98 * bound < proj.weight.abs().max() <= bound
    assert not any(layer.bias.any() for layer in (first, second, proj))


def test_patches_go_back_to_where_they_came_from():
    model = toy_host(learn_sigma=False)
    image = torch.randn(2, 4, 16, 16)
    patches = nn.functional.unfold(image, 2, stride=2).mT  # (B, N, C p p)
    tokens = patches.unflatten(2, (4, 4)).mT.flatten(2)  # (B, N, p p C)
    torch.testing.assert_close(model._unpatchify(tokens), image)


def test_half_precision_tells_late_times_apart():
    model = toy_host().to(torch.bfloat16)
    embedded = model.t_embedder(torch.tensor([998, 999]))
    assert embedded.dtype == torch.bfloat16 and not torch.equal(*embedded)


@pytest.mark.parametrize('shape', [(4, 8, 8), (3, 16, 16), (4, 16, 18)])
def test_data_of_another_size_are_refused_in_a_sentence(shape):
    with pytest.raises(UserError, match='takes latents or images of 4x16x16, got') as error:
        toy_host()(torch.zeros(1, *shape), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    assert str(error.value).count('.') == 1


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='huge'), 'choose from s, b, l, xl'),
        (dict(arch=dict(depth=1)), 'embed_dims, depth, num_heads'),
        (dict(input_size=17), 'multiple of patch_size'),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiT(**{**TOY, **options})
