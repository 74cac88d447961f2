"""Every command line that takes a config says in one sentence why it cannot be read."""

from pathlib import Path

import pytest
import torch

COMMANDS = {
    'train': ('CONFIG',),
    'test': ('CONFIG', 'x.pth'),
    'inference': ('CONFIG', 'x.pth', 'photo.jpg'),
    'restore': ('CONFIG', 'x.pth', 'photo.jpg'),
    'sample': ('CONFIG', 'x.pth'),
    'linearise': ('CONFIG', 'x.pth', '--attn', 'RALA'),
    'export': ('CONFIG', '--out', 'x.onnx'),
    'model_converters/backbone': ('CONFIG', 'x.pth', 'y.pth'),
    'model_converters/dctlsa': ('x.pth', 'y.pth', '--config', 'CONFIG'),
    'analysis_tools/get_flops': ('CONFIG',),
    'analysis_tools/benchmark': ('CONFIG', '--variants', 'eager', '--shapes', '64x64'),
}
MISTAKES = {
    'model = dict(': 'was never closed',
    "_base_ = ['none.py']": 'none.py',
    None: 'does not exist',
}


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('lr', "takes KEY=VALUE pairs, and 'lr' has no '='"),
        ('arch=dict(depths=(1,1),num_heads=(1,1))', "cannot read 'arch=dict"),
        ('scale=[1,2', "cannot read 'scale=[1,2'"),
    ],
)
@pytest.mark.parametrize('tool', ['train', 'inference', 'sample', 'analysis_tools/get_flops'])
def test_an_option_that_cannot_be_read_is_named(run, capsys, tool, option, message):
    with pytest.raises(SystemExit):
        run(tool, *COMMANDS[tool], '--cfg-options', 'a.b=[(1,2),c]', option)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('tool', COMMANDS)
@pytest.mark.parametrize('content', MISTAKES)
def test_a_config_that_cannot_be_read_is_one_sentence(run, capsys, tool, content):
    torch.save(dict(state_dict={'a': torch.ones(1)}), 'x.pth')
    if content is not None:
        Path('config.py').write_text(content)
    with pytest.raises(SystemExit):
        run(tool, *(word.replace('CONFIG', 'config.py') for word in COMMANDS[tool]))
    said = capsys.readouterr().err
    assert said.startswith('error: The config config.py ') and MISTAKES[content] in said
