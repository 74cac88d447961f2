"""What the processor can do: read from what Linux names, and from torch's switches."""

import pytest
import torch

from mirrorla_mm.ops import processor


@pytest.mark.parametrize(
    ('text', 'has'),
    [
        ('flags : fma avx512f avx512_bf16', True),
        ('flags : avx512f amx_bf16', True),
        ('Features : fp asimd bf16', True),
        ('flags : avx2 avx512f', False),
        (None, False),
    ],
)
def test_bfloat16_is_for_processors_that_name_it(text, has, monkeypatch):
    if not torch.backends.mkldnn.is_available():
        pytest.skip('torch is built without oneDNN')

    def read_text(_):
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(processor.Path, 'read_text', read_text)
    monkeypatch.setattr(processor, 'processor_words', processor.processor_words.__wrapped__)
    assert processor.has_bfloat16() == has


def test_onednn_computes_in_two_dtypes_where_it_is_on():
    if not torch.backends.mkldnn.is_available():
        pytest.skip('torch is built without oneDNN')
    assert processor.has_onednn(torch.float32) and processor.has_onednn(torch.bfloat16)
    assert not processor.has_onednn(torch.float64)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not processor.has_onednn(torch.float32)


def test_mkl_is_slow_on_wide_processors_of_amd(monkeypatch):
    for words, slow in (
        ({'AuthenticAMD', 'avx512f'}, torch.backends.mkl.is_available()),
        ({'AuthenticAMD', 'avx2'}, False),
        ({'GenuineIntel', 'avx512f'}, False),
        ((), False),
    ):
        monkeypatch.setattr(processor, 'processor_words', lambda words=words: frozenset(words))
        assert processor.has_slow_mkl() is slow
