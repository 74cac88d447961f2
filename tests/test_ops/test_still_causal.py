"""STILL on sequences against the formulas, written out token by token in float64."""

import pytest
import torch

from mirrorla_mm.ops import self_saliency_divergence, still_causal
from tests.test_ops.still_inputs import B, D, E, H, assert_same_with_gradients, inputs


def causal_by_hand(q, k, v, phi_q, phi_k, gate, chunk, top_k):
    """Token by token; tokens become salient chunk by chunk, by the divergence."""
    n = q.shape[2]
    salient = torch.zeros(B, H, n, dtype=torch.bool)
    for b, h in torch.cartesian_prod(torch.arange(B), torch.arange(H)).tolist():
        scores = []
        for t in range(n):
            first = max(0, t - chunk + 1)
            logits = k[b, h, first : t + 1] @ q[b, h, t] / D**0.5
            scores.append(self_saliency_divergence(logits, torch.tensor(t - first)))
        for start in range(0, n, chunk):
            part = torch.stack(scores[start : start + chunk]).detach()
            salient[b, h, start + part.argsort(descending=True)[:top_k]] = True
    outputs = torch.zeros(B, H, n, E, dtype=v.dtype)
    for t in range(n):
        c = t // chunk
        near = list(range(max(0, (c - 1) * chunk), t + 1))
        early = max(0, (c - 1) * chunk)
        for b, h in torch.cartesian_prod(torch.arange(B), torch.arange(H)).tolist():
            exact = [j for j in range(early) if salient[b, h, j]] + near
            linear = [j for j in range(early) if not salient[b, h, j]]
            s = k[b, h, exact] @ q[b, h, t] / D**0.5
            weights = (s - s.max()).exp()
            products = phi_k[b, h, linear] @ phi_q[b, h, t]
            numerator = weights @ v[b, h, exact] + gate[b, h, t] * (products @ v[b, h, linear])
            outputs[b, h, t] = numerator / (weights.sum() + products.sum() + 1e-6)
    return outputs


@pytest.mark.parametrize(
    ('n', 'chunk', 'top_k'), [(1, 4, 1), (13, 3, 2), (12, 4, 0), (23, 4, 1), (7, 1, 1), (9, 2, 5)]
)
def test_the_causal_form_is_the_published_formula(n, chunk, top_k):
    tensors = inputs(n)
    out, state = still_causal(*tensors, chunk=chunk, top_k=top_k)
    assert state.length == n
    expected = causal_by_hand(*tensors, chunk, top_k)
    assert_same_with_gradients(out, expected, tensors)


@pytest.mark.parametrize('pieces', [[1] * 19, [5, 1, 9, 4], [0, 19], [8, 11]])
def test_decoding_step_by_step_is_prefill(pieces):
    tensors = [x.detach() for x in inputs(19)]
    expected, final = still_causal(*tensors, chunk=4, top_k=1)
    state, outputs = None, []
    for part in zip(*(x.split(pieces, dim=2) for x in tensors)):
        out, state = still_causal(*part, chunk=4, top_k=1, state=state)
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, 2), expected)
    for ours, theirs in zip(state, final):
        torch.testing.assert_close(ours, theirs)


def test_a_chunk_is_routed_only_when_two_more_have_begun():
    tensors = [x.detach() for x in inputs(9)]
    for n, salient, waiting in ((8, 0, 8), (9, 1, 5)):
        _, state = still_causal(*(x[:, :, :n] for x in tensors), chunk=4, top_k=1)
        assert state.salient_k.shape[2] == salient and state.k.shape[2] == waiting


def test_chunks_of_64_keep_4_salient_tokens_by_default():
    _, state = still_causal(*(x.detach() for x in inputs(129)))
    assert state.salient_k.shape[2] == 4 and state.k.shape[2] == 65


def test_chunks_have_tokens():
    for options in (dict(chunk=0), dict(top_k=-1)):
        with pytest.raises(ValueError, match='needs chunk >= 1 and top_k >= 0'):
            still_causal(*inputs(3), **options)


def test_no_token_sees_a_later_one():
    tensors = [x.detach() for x in inputs(14)]
    before, _ = still_causal(*tensors, chunk=3, top_k=1)
    changed = [x.clone() for x in tensors]
    for x in changed:
        x[:, :, 10:] = torch.rand_like(x[:, :, 10:])
    after, _ = still_causal(*changed, chunk=3, top_k=1)
    torch.testing.assert_close(after[:, :, :10], before[:, :, :10])
    assert not torch.allclose(after[:, :, 10:], before[:, :, 10:])
