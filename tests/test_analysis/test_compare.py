import importlib.util
import os
from pathlib import Path

import pytest
import torch

from mirrorla_mm.analysis.benchmark import in_fresh_process
from mirrorla_mm.analysis.compare import StorageWatch, compare, fourfold, map_facts, scaling
from mirrorla_mm.registry import build_attention

TOOL = Path(__file__).resolve().parents[2] / 'tools/analysis_tools/compare_attention.py'


@pytest.mark.parametrize('power, growth', [(1, 4), (2, 16)])
def test_growth_is_that_for_four_times_the_tokens_whatever_the_grids(power, growth):
    sides = [10, 20, 30, 90]
    seconds = [1e-3 * side ** (2 * power) for side in sides]
    assert fourfold(seconds, sides) == pytest.approx([growth] * 3)


def test_grids_after_a_slow_one_are_left_out():
    costs = scaling('SoftmaxAttention', [2, 4, 8], channels=8, heads=1, repeats=1, patience=0)
    assert len(costs) == 1
    costs = scaling('ReLUAttention', [2, 4, 8], channels=8, heads=1, repeats=2)
    assert [len(pair) for pair in costs] == [2, 2, 2]
    memory = [training.memory for _, training in costs]
    assert memory == sorted(memory) and memory[0] < memory[-1]
    assert all(cost.seconds > 0 for pair in costs for cost in pair)


def test_peak_memory_is_what_lives_at_once():
    with StorageWatch() as watch:
        a = torch.zeros(1000)
        b = a + 1
        a.view(10, 100).add_(1)  # A view and what is done in place take nothing.
        del a
        c = b * 2
    assert watch.peak == 2 * 4000
    assert torch.equal(c, b * 2)


def facts_of(method: str):
    torch.manual_seed(0)
    module = build_attention(dict(type=method), embed_dims=16, num_heads=2)
    return map_facts(module, torch.randn(1, 36, 16), (6, 6))


def test_facts_tell_the_maps_apart():
    softmax, elu, relu = map(facts_of, ('SoftmaxAttention', 'ELUAttention', 'ReLUAttention'))
    # A linear map has at most the rank of a head's dimension.
    assert elu.rank <= 8 < softmax.rank <= 36
    assert relu.dead > 0.3 and elu.dead == softmax.dead == 0
    assert all(0 < facts.entropy <= 1 for facts in (softmax, elu, relu))


def test_methods_of_one_host_are_compared():
    image = torch.randn(1, 3, 64, 64)
    relu, rala = (compare(m, 'ravlt', 'xt', image, repeats=1) for m in ('ReLUAttention', 'RALA'))
    assert relu.params == rala.params
    assert relu.total > relu.layers
    assert relu.training.memory > relu.inference.memory > 0


def test_a_fresh_process_hands_back_what_it_finds():
    assert in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match='no number'):
        in_fresh_process(int, 'no number')


def test_the_tool_draws_and_prints(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location('compare_attention', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    # Its processes are another test's; here everything happens in this one.
    monkeypatch.setattr(tool, 'in_fresh_process', lambda function, *args: function(*args))
    monkeypatch.setattr(tool, 'keep_freed_memory', lambda: None)
    png = tmp_path / 'out.png'
    words = f'x --methods ReLUAttention --arch xt --size 64 --repeats 1 --sides 4 8 --out {png}'
    monkeypatch.setattr('sys.argv', words.split())
    tool.main()
    printed = capsys.readouterr().out
    assert 'ravlt-xt at 64x64' in printed and 'for four times the tokens' in printed
    assert png.read_bytes()[:4] == b'\x89PNG'
