"""Devices that a user names."""

import importlib.util
from pathlib import Path

import pytest
import torch

from mirrorla_mm.engine.devices import usable_device
from mirrorla_mm.engine.errors import UserError

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


def test_a_device_that_is_here_keeps_its_name():
    assert usable_device('cpu') == 'cpu'


@pytest.mark.parametrize(
    'name', ['cuda:99', 'nonsense', 'hpu', 'privateuseone', 'xla', 'fpga', 'meta', '']
)
def test_a_device_that_cannot_compute_is_refused_in_a_short_sentence(name):
    with pytest.raises(
        UserError, match=f"^The device '{name}' cannot be used: .+[^.]\\.$"
    ) as error:
        usable_device(name)
    message = str(error.value)
    assert len(message) < 300 and '\n' not in message and '. ' not in message


@pytest.mark.parametrize(
    'tool',
    ['analysis_tools/compare_attention', 'analysis_tools/benchmark_dit', 'studies/amp_stability'],
)
def test_tools_refuse_a_device_that_is_not_here(tool, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location('tool', TOOLS / f'{tool}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr('sys.argv', ['tool', '--device', f'cuda:{torch.cuda.device_count() + 99}'])
    with pytest.raises(SystemExit) as ended:
        module.main()
    said = capsys.readouterr()
    assert ended.value.code == 1 and not said.out
    assert said.err.startswith("error: The device 'cuda:") and said.err.count('\n') == 1
