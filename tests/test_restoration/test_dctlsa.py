"""The host, against its authors' outputs and against what it promises."""

import pytest
import torch
import torch.nn.functional as F

from mirrorla_mm.backbones.deploy import deploy
from mirrorla_mm.converters import convert_dctlsa, read_state_dict
from mirrorla_mm.restoration import DCTLSA
from mirrorla_mm.restoration.dctlsa import pad_by_reflection
from tests.test_restoration.toy import TOY, toy_host

MIRROR = dict(type='ReLUAttention', reflection={})
METHODS = [
    dict(type='LSA'),
    dict(type='SoftmaxAttention'),
    dict(type='SoftmaxAttention', naive=True),
    dict(type='ReLUAttention'),
    dict(type='PolaAttention'),
    dict(type='NaLaAttention'),
    MIRROR,
    dict(type='ReLUAttention', reflection=dict(variance_aware=False, cross_head=False)),
]


@pytest.fixture(scope='module')
def authors(oracle_file):
    converted = convert_dctlsa(read_state_dict(oracle_file('dctlsa_x4.pt')))
    model = DCTLSA(4)
    state = {key.removeprefix('backbone.'): v for key, v in converted.state_dict.items()}
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def test_outputs_are_those_of_the_authors(authors, oracle):
    known = oracle('dctlsa_x4_output')
    for x, y in zip(known['x'], known['y']):
        torch.testing.assert_close(authors(x), y, rtol=0, atol=1e-5)


@pytest.mark.parametrize(('scale', 'count'), [(2, 867472), (3, 874912), (4, 885328)])
def test_has_the_parameters_of_the_published_files(scale, count):
    model = DCTLSA(scale)
    assert sum(p.numel() for p in model.parameters()) == count
    assert len(model.state_dict()) == 546


@pytest.mark.parametrize('head_dim', [4, 3])
@pytest.mark.parametrize('attn_cfg', METHODS, ids=lambda cfg: '-'.join(map(str, cfg.values())))
@torch.no_grad()
def test_every_attention_fits_the_slot(attn_cfg, head_dim):
    model = toy_host(attn_cfg=attn_cfg, embed_dims=2 * head_dim)
    x = torch.rand(2, 3, 11, 9)
    y = model(x)
    assert y.shape == (2, 3, 22, 18) and y.isfinite().all()
    torch.testing.assert_close(y[1:], model(x[1:]))


@pytest.mark.parametrize('attn_cfg', [dict(type='LSA'), MIRROR])
def test_every_parameter_learns(attn_cfg):
    model = DCTLSA(2, **TOY, attn_cfg=attn_cfg).train()
    model(torch.rand(2, 3, 8, 8)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@torch.no_grad()
def test_heads_of_odd_dimension_are_mirrored():
    model = toy_host(embed_dims=6, attn_cfg=MIRROR)
    assert {m.theta.shape for m in model.modules() if hasattr(m, 'theta')} == {(2, 1)}
    assert model(torch.rand(1, 3, 9, 8)).isfinite().all()


@torch.no_grad()
def test_a_window_attends_to_itself_alone():
    block = toy_host(attn_cfg=MIRROR).groups[0][0].blocks[0]
    x = torch.rand(1, 8, 12, 8)
    other = x.clone()
    other[:, 4:] += torch.rand(1, 4, 12, 8)
    before, after = block.attend(x), block.attend(other)
    torch.testing.assert_close(after[:, :4], before[:, :4], rtol=0, atol=0)
    assert not torch.allclose(after[:, 4:], before[:, 4:])
    window = block.attn(x[:, :4, 4:8].flatten(1, 2), (4, 4)).unflatten(1, (4, 4))
    torch.testing.assert_close(before[:, :4, 4:8], window)


@torch.no_grad()
def test_blocks_are_shifted_by_turns():
    first, second = toy_host().groups[0][0].blocks
    assert (first.shift, second.shift) == (0, 2)
    x = torch.rand(1, 8, 8, 8)
    rolled = x.roll((-2, -2), (1, 2))
    second.shift = 0
    expected = second(rolled).roll((2, 2), (1, 2))
    second.shift = 2
    torch.testing.assert_close(second(x), expected)


@pytest.mark.parametrize('size', [1, 2, 3, 5, 9, 16, 17])
@torch.no_grad()
def test_images_of_any_size_go_in(size):
    model = toy_host(window_size=8)
    y = model(torch.rand(1, 3, size, 20))
    assert y.shape == (1, 3, 2 * size, 40) and y.isfinite().all()


def test_padding_is_by_reflection_as_often_as_it_takes():
    x = torch.rand(2, 3, 23, 37)
    expected = F.pad(x, (0, 11, 0, 9), mode='reflect')
    assert torch.equal(pad_by_reflection(x, 16), expected)
    row = pad_by_reflection(torch.arange(3.0).view(1, 1, 1, 3), 8)
    assert row.shape == (1, 1, 8, 8) and row[0, 0, 5].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert pad_by_reflection(expected, 16) is expected


@pytest.mark.parametrize('attn_cfg', [dict(type='LSA'), MIRROR], ids=['lsa', 'mirror'])
@torch.no_grad()
def test_deploy_mode_folds_the_batch_norms_and_changes_nothing(attn_cfg):
    model = toy_host(attn_cfg=attn_cfg).double()
    x = torch.rand(1, 3, 9, 13, dtype=torch.float64)
    expected = model(x)
    for _ in range(2):
        deploy(model)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize('options', [dict(upscale=0), dict(window_size=1), dict(num_heads=3)])
def test_senseless_sizes_are_refused(options):
    with pytest.raises(ValueError, match='needs? to be'):
        DCTLSA(**{**TOY, **options})
