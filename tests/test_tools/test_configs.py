"""Every command line that takes a config says in one sentence why it cannot be read."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

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
    'lr = 0.1': 'has no model',
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


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['model.backbone.type=MirrorLA'], "write 'mirrorla_mm.MirrorLA'."),
        (['model.backbone.attn_cfg=RALA'], 'for another use RAVLT(attn_cfg=...)'),
        (
            ['model.backbone.type=mirrorla_mm.RAVLT', 'model.backbone.attn_cfg.type=Miror'],
            "There is no attention 'Miror'; choose from AgentAttention, EL",
        ),
        (['model.backbone.layuot=linear'], "unexpected keyword argument 'layuot'"),
        (['model.backbone.layout=linaer'], "got 'linaer'"),
        (['model.backbone.num_heads=[1,2]'], "unexpected keyword argument 'num_heads'"),
        (['optim_wrapper=None'], 'has no optim_wrapper'),
    ],
)
def test_a_mistake_in_the_config_ends_a_training_in_a_sentence(
    run, config, capsys, options, message
):
    with pytest.raises(SystemExit):
        run('train', config('segmentation'), '--work-dir', 'work', '--cfg-options', *options)
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize('name', ['triton', 'trition'])
def test_a_backend_that_cannot_run_ends_a_test_in_a_sentence(
    run, config, capsys, monkeypatch, name
):
    file, message = config('segmentation'), dict(triton='cannot run', trition='Unknown backend')
    model = MODELS.build({**Config.fromfile(file).model, '_scope_': 'mmseg'})
    torch.save(dict(state_dict=model.state_dict()), 'x.pth')
    monkeypatch.setenv('MIRRORLA_BACKEND', name)
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    with pytest.raises(SystemExit):
        run('test', file, 'x.pth', '--work-dir', 'work')
    assert message[name] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize('tool', COMMANDS)
@pytest.mark.parametrize('content', MISTAKES)
def test_a_config_that_cannot_be_read_is_one_sentence(run, capsys, tool, content):
    torch.save(dict(state_dict={'a': torch.ones(1)}), 'x.pth')
    if content is not None:
        Path('config.py').write_text(content)
    with pytest.raises(SystemExit):
        run(tool, *(word.replace('CONFIG', 'config.py') for word in COMMANDS[tool]))
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith('error: The config config.py ') and MISTAKES[content] in said


@pytest.mark.parametrize(
    'tool', ['linearise', 'export', 'model_converters/backbone', 'model_converters/dctlsa']
)
def test_a_config_without_a_backbone_is_one_sentence(run, capsys, tool):
    torch.save(dict(state_dict={'a': torch.ones(1)}), 'x.pth')
    Path('config.py').write_text("model = dict(type='ToyModel')")
    with pytest.raises(SystemExit):
        run(tool, *(word.replace('CONFIG', 'config.py') for word in COMMANDS[tool]))
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith('error: The config config.py has no model.backbone: ')


@pytest.mark.parametrize(
    'weights',
    [{'a': torch.ones(2)}, {'stem.weight': torch.ones(()), 'groups.0.0.x': torch.ones(2)}],
)
def test_a_file_that_cannot_go_back_to_dctlsa_is_named(run, capsys, weights):
    torch.save(weights, 'trained.pth')
    with pytest.raises(SystemExit):
        run('model_converters/dctlsa', 'trained.pth', 'official.pt', '--back')
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith('error: trained.pth cannot be converted: ')
