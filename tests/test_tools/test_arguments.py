"""Numbers that no tool can work with end in one sentence, before anything is measured."""

import argparse

import pytest

from mirrorla_mm.analysis.stability import Stability
from mirrorla_mm.engine.arguments import positive_int

OPTIONS = {
    'analysis_tools/attention_maps': ['--long-side'],
    'analysis_tools/benchmark': ['--batch', '--rounds', '--threads'],
    'analysis_tools/benchmark_dit': ['--sides', '--batch', '--rounds'],
    'analysis_tools/compare_attention': ['--size', '--repeats', '--sides'],
    'analysis_tools/compare_restorations': ['--scale', '--size'],
    'analysis_tools/covariance_mixing': ['--heads', '--head-dim'],
    'analysis_tools/feature_topology': ['--long-side'],
    'analysis_tools/get_flops': ['--shape'],
    'analysis_tools/mask_disagreement': ['--clusters', '--tokens'],
    'encode_latents': ['--size', '--batch-size'],
    'sample': ['--number', '--batch-size', '--grid', '--guided-channels'],
    'studies/amp_stability': ['--steps'],
    'studies/compare': ['--iters'],
    'studies/diffusion': ['--iters', '--samples', '--comparisons'],
    'studies/linearise': ['--teacher-iters', '--iters'],
}
REFUSED = [
    *(
        (tool, option, '0', 'no whole number from 1 on')
        for tool in OPTIONS
        for option in OPTIONS[tool]
    ),
    ('analysis_tools/benchmark', '--shapes', '0x64', 'no whole number from 1 on'),
    ('analysis_tools/mask_disagreement', '--tokens', '1', 'pairs from 2 tokens on'),
    ('studies/linearise', '--scenes', '160 0', 'no whole number from 1 on'),
    ('studies/amp_stability', '--methods', 'Nope', 'AgentAttention'),
]


@pytest.mark.parametrize('tool, option, value, message', REFUSED)
def test_a_value_without_a_result_is_refused(run, capsys, tmp_path, tool, option, value, message):
    with pytest.raises(SystemExit) as stopped:
        run(tool, option, *value.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f'{option}: ' in error and message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', ['0', '-3', '1.5', 'x', ''])
def test_a_whole_number_from_1_on_is_asked_for(text):
    assert positive_int('12') == 12
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is no whole number from 1 on"):
        positive_int(text)


def test_a_first_loss_that_is_no_number_is_a_row_of_the_table(run, capsys, monkeypatch):
    broken = Stability([float('nan')], first_bad=0, skipped=0)
    monkeypatch.setattr('mirrorla_mm.analysis.stability.train', lambda *_, **__: broken)
    run('studies/amp_stability', '--methods', 'RALA', '--dtypes', 'fp32')
    assert '| RALA | fp32 | 0 | nan | - | 0 | until step 0 |' in capsys.readouterr().out
