import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mirrorla_mm.attention import MirrorAttention, SoftmaxAttention, STILLAttention
from mirrorla_mm.engine.export import export, largest_error, prepare
from mirrorla_mm.ops import apply_rope, rope_2d
from mirrorla_mm.ops.maps import to_tokens
from tests.test_attention.quadratic import (
    DIMS,
    HW,
    assert_same,
    merge,
    projected,
    randomised,
    reflected,
    split,
    tokens,
)

HEAD = 8
# Windows of 2 on a map of 3 x 5, one salient token each, four an image.
OPTIONS = dict(window=2, top_k=1, max_selected=4)


def np_features(x, turned):
    u = turned / turned.norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)
    return torch.cat((u.softmax(-1), (-u).softmax(-1)), -1)


def householder_then_matrix(head_map, x):
    u = F.normalize(head_map.reflection, dim=-1)
    x = x - 2 * torch.einsum('bhnd,hd,he->bhne', x, u, u)
    return torch.einsum('bhnd,hed->bhne', x, head_map.weight)


def features_by_hand(attention, q, k):
    if attention.feature_map == 'np':
        maps = attention.map_q, attention.map_k
        return [np_features(x, householder_then_matrix(f, x)) for x, f in zip((q, k), maps)]
    turned = list(map(split, reflected(attention, merge(q), merge(k))))
    if attention.feature_map == 'np-mirror':
        return [np_features(x, y) for x, y in zip((q, k), turned)]
    return [y.relu() / HEAD**0.25 for y in turned]


def by_hand(attention, x):
    q, k, v = map(split, projected(attention, x))
    if attention.rope:
        angles = rope_2d(HW, HEAD, dtype=x.dtype)
        q, k = apply_rope(q, angles), apply_rope(k, angles)
    phi_q, phi_k = features_by_hand(attention, q, k)
    row, column = torch.arange(HW[0]) // 2, torch.arange(HW[1]) // 2
    window = (10 * row[:, None] + column).flatten()
    together = window[:, None] == window
    scores = q @ k.mT / HEAD**0.5
    own = scores.masked_fill(~together, -torch.inf).softmax(-1).diagonal(dim1=-2, dim2=-1)
    # Odds over those of an even attention; a token that is alone has all of its attention.
    own = own / (1 - own) * (together.sum(-1) - 1).clamp(min=1)
    best = torch.stack([own.where(window == w, -1).argmax(-1) for w in window.unique()], -1)
    order = own.gather(-1, best).argsort(-1, descending=True)[..., :4]
    salient = torch.zeros_like(own, dtype=torch.bool).scatter(-1, best.gather(-1, order), True)
    exact = together | salient.unsqueeze(-2)
    scores = scores.masked_fill(~exact, -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    products = (phi_q @ phi_k.mT).masked_fill(exact, 0)
    gate = 1
    if attention.linear_gate is not None:
        gate = split(attention.linear_gate(x)).sigmoid()
    total = weights.sum(-1, keepdim=True) + products.sum(-1, keepdim=True) + 1e-6
    return attention.proj(merge((weights @ v + gate * (products @ v)) / total))


@pytest.mark.parametrize('feature_map', ['np', 'np-mirror', 'relu-mirror'])
@pytest.mark.parametrize('options', [{}, {'rope': True, 'linear_gate': False}], ids=str)
def test_is_the_formula_with_its_matrices_written_out(feature_map, options):
    attention = randomised(STILLAttention, feature_map=feature_map, **OPTIONS, **options)
    assert_same(attention, by_hand)


@pytest.mark.parametrize('options', [{}, {'rope': True}, {'sr_ratio': 2}], ids=str)
def test_both_roads_agree_in_output_and_all_gradients(options):
    attention = randomised(STILLAttention, **OPTIONS, **options)
    naive = copy.deepcopy(attention)
    naive.naive = True
    x = tokens((6, 7))
    results = []
    for module in (attention, naive):
        out = module(x, (6, 7))
        leaves = [x, *module.parameters()]
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_both_roads_find_the_same_keys_under_autocast(dtype):
    attention = randomised(STILLAttention, **OPTIONS).float()
    q, k, v = torch.randn(3, 1, 2, 42, DIMS // 2).to(dtype)
    results = []
    for attention.naive in (False, True):
        with torch.no_grad(), torch.autocast('cpu', dtype):
            results.append(attention.attend(q, k, v, (6, 7)).float())
    torch.testing.assert_close(*results, rtol=0.02, atol=0.02)


@pytest.mark.parametrize('rope', [False, True])
def test_all_tokens_salient_is_the_softmax_attention_of_the_same_weights(rope):
    attention = randomised(STILLAttention, window=3, top_k=9, max_selected=None, rope=rope)
    softmax = SoftmaxAttention(DIMS, 2, rope=rope).double()
    softmax.load_state_dict(attention.state_dict(), strict=False)
    x = tokens((5, 7))
    ours, expected = attention(x, (5, 7)), softmax(x, (5, 7))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_map_within_one_window_is_softmax_attention_and_leaves_all_parameters_a_gradient():
    attention = STILLAttention(DIMS, 2, rope=True).double()
    softmax = SoftmaxAttention(DIMS, 2, rope=True).double()
    softmax.load_state_dict(attention.state_dict(), strict=False)
    x = tokens()
    out = attention(x, HW)
    torch.testing.assert_close(out, softmax(x, HW), rtol=1e-5, atol=1e-5)
    out.sum().backward()  # DistributedDataParallel waits for every one.
    assert all(p.grad is not None for p in attention.parameters())


def test_reflected_queries_and_keys_start_with_the_products_of_unreflected():
    attention = STILLAttention(DIMS, 2).double()
    q, k = torch.randn(2, 1, 2, 6, HEAD, dtype=torch.float64)
    turned = attention.map_q(q) @ attention.map_k(k).mT
    torch.testing.assert_close(turned, q @ k.mT)
    assert attention.map_q.weight is not attention.map_k.weight


def test_relu_features_are_those_of_mirrorla():
    attention = STILLAttention(DIMS, 2, feature_map='relu-mirror').double()
    mirror = MirrorAttention(DIMS, 2).double()
    mirror.reflection.load_state_dict(attention.reflection.state_dict())
    q, k = torch.randn(2, 1, 2, 6, HEAD, dtype=torch.float64)
    expected = mirror.reflection.reflect_all(q).relu() / HEAD**0.25
    torch.testing.assert_close(attention.features(q), expected)


def test_images_with_their_own_queries_choose_their_own_tokens():
    attention = randomised(STILLAttention, **OPTIONS)
    x = tokens()
    assert torch.allclose(attention(x, HW)[1:], attention(x[1:], HW))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'window': 0}, 'window >= 1'),
        ({'top_k': -1}, 'top_k >= 0'),
        ({'max_selected': 0}, 'max_selected >= 1'),
        ({'feature_map': 'elu'}, "Unknown feature_map 'elu'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        STILLAttention(DIMS, 2, **options)


class OnMaps(nn.Module):
    """Two attentions, each on the tokens of a map at stride 4."""

    def __init__(self, *attentions):
        super().__init__()
        self.stem = nn.Conv2d(3, DIMS, 3, 4, padding=1)
        self.attentions = nn.ModuleList(attentions)

    def forward(self, x):
        x = self.stem(x)
        return tuple(attention(to_tokens(x), x.shape[-2:]) for attention in self.attentions)


@pytest.mark.slow
def test_an_exported_graph_serves_sizes_that_pad_windows_otherwise(tmp_path):
    """At the traced size every window is padded, or none; at these some are."""
    cfgs = [dict(window=3, max_selected=6), {}]
    model = prepare(OnMaps(*(STILLAttention(DIMS, 2, **cfg) for cfg in cfgs)))
    file = tmp_path / 'model.pt2'
    export(model, file, 'torch')
    assert largest_error(model, file, 'torch', [(64, 90)], batch=1) < 1e-4
    assert largest_error(model, file, 'torch', [(97, 131)], batch=3) < 1e-4
