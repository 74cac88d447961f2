"""STILL's operators against the formulas, written out token by token in float64."""

import pytest
import torch
import torch.nn.functional as F

from mirrorla_mm.ops import (
    cross_head_reflection,
    householder,
    np_map,
    one_denominator,
    self_saliency,
    self_saliency_divergence,
    still_attention,
)
from mirrorla_mm.ops.saliency import most_salient, self_attention_odds
from mirrorla_mm.ops.still import exact_pairs, leave_one_out
from mirrorla_mm.ops.windows import Windows
from tests.test_ops.still_inputs import B, D, H, assert_same_with_gradients, inputs

# --- The score ------------------------------------------------------------------------------------


def test_the_closed_form_is_the_divergence_it_comes_from():
    logits = torch.randn(200, 9, dtype=torch.float64) * 4
    own = torch.randint(9, (200,))
    share = logits.softmax(-1).gather(-1, own.unsqueeze(-1)).squeeze(-1)
    # The divergence has an epsilon under each of its logarithms, the closed form under one.
    difference = self_saliency(share) - self_saliency_divergence(logits, own)
    assert difference.abs().max() < 2e-6
    by_image = self_saliency_divergence(logits.view(4, 50, 9), own.view(4, 50))
    torch.testing.assert_close(by_image.flatten(), self_saliency_divergence(logits, own))


def test_the_score_rises_with_self_attention_from_zero_to_all():
    share = torch.linspace(0, 1, 10001, dtype=torch.float64)
    score = self_saliency(share)
    assert score.isfinite().all() and score[0] == 0
    assert (score.diff()[1:] > 0).all()
    alone = self_saliency_divergence(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(alone, self_saliency(torch.ones(1)))


def test_the_score_differentiates_at_both_ends():
    share = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    self_saliency(share)[1].backward()
    assert share.grad[1].isfinite()


def test_ties_go_to_the_first_token_and_places_without_one_come_last():
    odds = torch.tensor([-2.0, -1.0, -1.0 + 1e-6, -1.0, 0.0])
    valid = torch.tensor([True, True, True, True, False])
    index, real = most_salient(odds, valid, 5)
    assert index.tolist() == [1, 2, 3, 0, 4]
    assert real.tolist() == [True, True, True, True, False]


# --- The feature map ------------------------------------------------------------------------------


def test_a_householder_matrix_is_our_cross_head_reflection():
    u, x = torch.randn(H, D, dtype=torch.float64), torch.randn(H, 6, D, dtype=torch.float64)
    by_matrix = x @ householder(u)
    for head in range(H):
        torch.testing.assert_close(by_matrix[head], cross_head_reflection(x[head], u[head]))


def test_np_map_of_a_reflection_needs_no_rescaling():
    x = torch.randn(7, D, dtype=torch.float64)
    reflected = x @ householder(torch.randn(D, dtype=torch.float64))
    features = np_map(x, reflected)
    by_hand = torch.cat((reflected.softmax(-1), (-reflected).softmax(-1)), -1)
    torch.testing.assert_close(features, by_hand)
    torch.testing.assert_close(np_map(x, 17 * reflected), by_hand)
    assert (features > 0).all()
    assert (np_map(1e4 * x, 1e4 * x) > 0).all()  # where the softmax is a one among zeros


@pytest.mark.parametrize('value', [0.0, 1e-30, 1e-15, 1e4])
def test_np_map_has_finite_gradients_at_any_length(value):
    x = torch.full((3, D), value, requires_grad=True)
    weight = torch.eye(D, requires_grad=True)
    np_map(x, x @ weight).square().sum().backward()
    assert x.grad.isfinite().all() and weight.grad.isfinite().all()


# --- Images ---------------------------------------------------------------------------------------


def salient_by_hand(q, k, of_key, top_k, most):
    """Tokens with the largest score, window by window, then of the image."""
    salient = torch.zeros(k.shape[:3], dtype=torch.bool)
    for b, h in torch.cartesian_prod(torch.arange(B), torch.arange(H)).tolist():
        found = []
        for window in of_key.unique():
            tokens = (of_key == window).nonzero().flatten()
            logits = q[b, h, tokens] @ k[b, h, tokens].T / D**0.5
            share = logits.softmax(-1).diagonal()
            # Over the odds of an even attention; a token alone has all of its attention.
            scores = share / (1 - share) * max(len(tokens) - 1, 1)
            found += sorted(zip((-scores).tolist(), tokens.tolist()))[:top_k]
        for _, token in sorted(found)[:most]:
            salient[b, h, token] = True
    return salient


def queries_of_keys(q, hw, reduction):
    """For each key the mean of the queries that it stands for."""
    places = q.unflatten(2, hw).unfold(2, reduction, reduction).unfold(3, reduction, reduction)
    return places.mean((-2, -1)).flatten(2, 3)


def windows_of(hw, side):
    rows, columns = (torch.arange(n) // side for n in hw)
    return (100 * rows[:, None] + columns).flatten()


GRIDS = [(1, 1), (1, 7), (6, 6), (7, 9)]


@pytest.mark.parametrize('hw', GRIDS, ids=str)
@pytest.mark.parametrize('side', [1, 3, 8])
@pytest.mark.parametrize(('top_k', 'most'), [(0, None), (1, None), (2, 5), (3, 64), (99, None)])
def test_gathering_the_salient_tokens_is_the_formula(hw, side, top_k, most):
    tensors = inputs(hw[0] * hw[1])
    q, k, *_, gate = tensors
    of_key = windows_of(hw, side)
    salient = salient_by_hand(q.detach(), k.detach(), of_key, top_k, most)
    exact = salient.unsqueeze(-2) | (of_key[:, None] == of_key)
    expected = one_denominator(*tensors[:5], exact, ~exact, gate)
    windows = Windows(side, top_k, most)
    assert torch.equal(exact_pairs(q, k, hw, windows), exact)
    out = still_attention(*tensors[:5], hw, windows, gate)
    assert_same_with_gradients(out, expected, tensors)


@pytest.mark.parametrize('hw', [(2, 2), (5, 9), (8, 8)], ids=str)
def test_reduced_keys_belong_to_the_window_of_the_queries_they_stand_for(hw):
    windows = Windows(2, 1, 3, reduction=2)
    tensors = inputs(hw[0] * hw[1], (hw[0] // 2) * (hw[1] // 2))
    q, k = tensors[:2]
    exact = exact_pairs(q, k, hw, windows)
    of_query, of_key = windows_of(hw, 4), windows_of((hw[0] // 2, hw[1] // 2), 2)
    per_key = queries_of_keys(q.detach(), hw, 2)
    salient = salient_by_hand(per_key, k.detach(), of_key, windows.top_k, windows.most)
    assert torch.equal(exact, salient.unsqueeze(-2) | (of_query[:, None] == of_key))
    expected = one_denominator(*tensors[:5], exact, ~exact, tensors[5])
    out = still_attention(*tensors[:5], hw, windows, tensors[5])
    assert_same_with_gradients(out, expected, tensors)


def test_all_tokens_salient_is_softmax_attention():
    hw = (5, 8)
    tensors = inputs(40)
    q, k, v, *features, _ = tensors
    out = still_attention(q, k, v, *features, hw, Windows(3, 9, None))
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out, expected, rtol=2e-6, atol=2e-6)


def test_no_salient_token_is_a_window_and_linear_attention():
    """With one-token windows and features alone it is linear attention but for the token itself."""
    q, k, v, phi_q, phi_k, _ = inputs(6)
    out = still_attention(q, k, v, phi_q, phi_k, (2, 3), Windows(1, 0))
    products = phi_q @ phi_k.mT
    products = products - torch.diag_embed(products.diagonal(dim1=-2, dim2=-1) - 1)
    expected = products @ v / (products.sum(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(out, expected)


def test_no_key_counts_twice():
    """With features 0 a window's own salient tokens count once, like its others."""
    q, k, v, phi_q, phi_k, _ = inputs(9)
    out = still_attention(q, k, v, 0 * phi_q, phi_k, (3, 3), Windows(3, 4))
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out, expected, rtol=2e-6, atol=2e-6)


def test_the_bound_keeps_the_most_salient_tokens():
    q, k = inputs(64)[:2]
    few = exact_pairs(q, k, (8, 8), Windows(2, 2, 5)) & ~exact_pairs(q, k, (8, 8), Windows(2, 0))
    all_pairs = exact_pairs(q, k, (8, 8), Windows(2, 2, None))
    assert (few <= all_pairs).all()
    assert (few.any(-2).sum(-1) == 5).all()


def test_a_window_that_the_border_cuts_has_no_more_than_its_share():
    hw, windows = (50, 42), Windows(7, 4, 64)
    q, k = (torch.randn(1, 4, 50 * 42, 16) * 0.5 for _ in 'qk')
    chosen = exact_pairs(q, k, hw, windows) & ~exact_pairs(q, k, hw, Windows(7, 0))
    salient = chosen.any(-2).view(1, 4, *hw)
    # The last row has a window row to itself: an eighth of the windows, 2 % of the tokens.
    assert salient.sum() == 4 * 64 and salient[:, :, -1].sum() < 0.4 * 4 * 64


def test_attention_near_one_is_told_apart():
    own = torch.tensor([10.0, 20.0, 15.0])
    odds = self_attention_odds(torch.zeros(3, 5, requires_grad=True), own.requires_grad_())
    assert not odds.requires_grad
    assert most_salient(odds, torch.ones(3, dtype=torch.bool), 2)[0].tolist() == [1, 2]


def test_ties_are_decided_alike_on_both_roads():
    q, k, v, *features, _ = [torch.ones_like(x) * x[:, :, :1] for x in inputs(54)]
    v = torch.randn_like(v)
    windows = Windows(3, 2, 7)
    exact = exact_pairs(q, k, (6, 9), windows)
    expected = one_denominator(q, k, v, *features, exact, ~exact)
    torch.testing.assert_close(still_attention(q, k, v, *features, (6, 9), windows), expected)


def test_leaving_a_large_window_out_does_not_cancel_the_small_ones():
    sums = torch.tensor([1e12, 1.0, 2.0]).view(1, 1, 3, 1)
    assert leave_one_out(sums).flatten().tolist() == pytest.approx([3.0, 1e12, 1e12])
    assert leave_one_out(sums[:, :, :1]).flatten().tolist() == [0.0]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('value', [None, 0.0, 1.0, 200.0])
def test_half_precision_and_constant_tokens_are_finite(dtype, value):
    tensors = inputs(35, dtype=dtype)
    if value is not None:
        tensors = [torch.full_like(x, value).detach().requires_grad_() for x in tensors]
    for windows in (Windows(3, 2), Windows(1, 1, 4), Windows(9, 81, None)):
        out = still_attention(*tensors[:5], (5, 7), windows, tensors[5])
        assert out.dtype == dtype and out.isfinite().all()
        grads = torch.autograd.grad(out.float().mean(), tensors[:5], allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in grads)
