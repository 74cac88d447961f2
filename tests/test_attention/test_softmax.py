"""Softmax attention: fused, written out, and under the reference backend."""

import pytest
import torch

from mirrorla_mm.attention import SoftmaxAttention
from mirrorla_mm.ops import rope, use_backend
from tests.test_attention.quadratic import HW, randomised, tokens


@pytest.fixture
def attention():
    return randomised(SoftmaxAttention, rope=True)


def test_written_out_it_is_the_same(attention):
    x = tokens()
    fused = attention(x, HW)
    attention.naive = True
    torch.testing.assert_close(attention(x, HW), fused)


def test_reference_backend_turns_by_the_plain_form(attention, monkeypatch):
    x = tokens()
    expected = attention(x, HW)
    monkeypatch.setattr(rope, 'as_complex', None)  # the fast form cannot run
    with use_backend('torch'):
        torch.testing.assert_close(attention(x, HW), expected)
