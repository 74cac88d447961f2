"""The command line that makes a softmax backbone linear."""

import json

import pytest
import torch

from mirrorla_mm.engine.checkpoint import load_checkpoint_file
from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.engine.linearise_model import AttentionTransfer
from mirrorla_mm.registry import MODELS

ARCH = dict(embed_dims=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4])
HYBRID = "model['backbone'].update(layout='hybrid')\n"
STEPS = ('--iters', 4, 2, 2)


@pytest.fixture
def softmax(config, tmp_path):
    """A config with softmax attention in stages 3 and 4, and a checkpoint of a whole model."""
    path = config('segmentation', HYBRID)
    checkpoint = tmp_path / 'softmax.pth'
    cfg = dict(
        type='mmseg.EncoderDecoder',
        backbone=dict(
            type='mirrorla_mm.MirrorLA', arch=ARCH, layout='hybrid', out_indices=(1, 2, 3)
        ),
        decode_head=dict(
            type='mirrorla_mm.EfficientViTHead',
            in_channels=[16, 16, 32],
            in_index=[0, 1, 2],
            channels=16,
            num_classes=6,
            norm_cfg=dict(type='BN'),
        ),
    )
    import mmseg.models  # noqa: F401  (registers the segmentor)

    torch.save(dict(state_dict=MODELS.build(cfg).state_dict()), checkpoint)
    return path, checkpoint


def backbone_of(file):
    return {
        key: value
        for key, value in load_checkpoint_file(file)['state_dict'].items()
        if key.startswith('backbone.')
    }


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ordinary_tools_take_the_result(
    softmax, run, tmp_path, capsys, monkeypatch
):
    command = ['linearise', *softmax, '--attn', 'STILLAttention', '--attn-options', 'window=2']
    run(*command, *STEPS, '--no-test', '--work-dir', tmp_path / 'whole')
    calls = []
    loss = AttentionTransfer.attention_loss

    def dies(self, inputs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(self, inputs)

    monkeypatch.setattr(AttentionTransfer, 'attention_loss', dies)
    command += [*STEPS, '--work-dir', tmp_path / 'killed']
    with pytest.raises(KeyboardInterrupt):
        run(*command)
    run(*command)
    assert len(calls) < 4 + 4
    for state in ('copied', 'attention', 'features', 'fine-tuned'):
        ours, theirs = (backbone_of(tmp_path / w / f'{state}.pth') for w in ('killed', 'whole'))
        torch.testing.assert_close(ours, theirs)
    table = capsys.readouterr().out
    for word in ('stages.2.0.attn', 'stages.3.0.attn', 'mIoU', 'fine-tuned', 'MiB'):
        assert word in table

    count = len(calls)
    run(*command)  # Nothing is repeated, and the table is the same.
    assert len(calls) == count
    config, checkpoint = tmp_path / 'killed/linearised.py', tmp_path / 'killed/linearised.pth'
    run('test', config, checkpoint, '--deploy')
    measured = json.loads((tmp_path / 'killed/results.json').read_text())
    assert f'{measured["metrics of fine-tuned"]["mIoU"]:.2f}'.rstrip('0') in capsys.readouterr().out
    run('train', config, '--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1')


def test_a_converted_hybrid_becomes_strictly_linear_mirrorla_in_one_command(
    config, run, tmp_path, capsys
):
    ravlt = "model['backbone'].update(type='mirrorla_mm.RAVLT', layout='hybrid')\n"
    backbone = MODELS.build(dict(type='mirrorla_mm.RAVLT', arch=ARCH, out_indices=(1, 2, 3)))
    weights = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    file = tmp_path / 'converted.pth'
    torch.save(dict(meta=dict(backbone={}), state_dict=weights), file)
    command = [config('segmentation', ravlt), file, '--attn', 'MirrorAttention']
    run('linearise', *command, '--stages', 1, 2, 3, 4, '--iters', 1, 0, 0, '--work-dir', 'linear')
    # There is no head to be tested yet.
    assert 'mIoU' not in capsys.readouterr().out
    text = (tmp_path / 'linear/linearised.py').read_text()
    assert 'mirrorla_mm.MirrorLA' in text and 'RAVLT' not in text
    model = MODELS.build(
        dict(type='mirrorla_mm.MirrorLA', arch=ARCH, layout='linear', out_indices=(1, 2, 3))
    )
    ours = backbone_of(tmp_path / 'linear/linearised.pth')
    model.load_state_dict({key.removeprefix('backbone.'): v for key, v in ours.items()})
    shared = [key for key in weights if key in ours]
    assert len(shared) == len(weights)
    assert all(torch.equal(ours[key], weights[key]) for key in shared)


@pytest.mark.slow
def test_a_classifier_starts_a_segmentor_whose_fine_tuning_ends_with_the_averages(
    config, run, tmp_path, capsys
):
    ema = """
model['backbone'].update(type='mirrorla_mm.RAVLT', layout='hybrid')
custom_hooks = [dict(type='EMAHook', momentum=0.5)]
"""
    cfg = dict(type='mirrorla_mm.RAVLT', arch=ARCH, out_indices=(3,), out_norm=False)
    weights = {f'backbone.{k}': value for k, value in MODELS.build(cfg).state_dict().items()}
    weights |= {'neck.weight': torch.zeros(3), 'head.fc.weight': torch.zeros(9, 32)}
    file = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict=weights), file)
    command = ['linearise', config('segmentation', ema), file, '--attn', 'ReLUAttention']
    run(*command, '--iters', 0, 0, 2, '--work-dir', 'w')
    # The head of the classifier is none of the segmentor's: only the last state is tested.
    assert 'mIoU' in capsys.readouterr().out
    assert list(json.loads((tmp_path / 'w/results.json').read_text())) == [
        'errors of copied',
        'errors of fine-tuned',
        'metrics of fine-tuned',
    ]
    ours = backbone_of(tmp_path / 'w/linearised.pth')
    saved = load_checkpoint_file(tmp_path / 'w/fine-tuned-training/iter_2.pth')
    key = 'backbone.stages.2.0.attn.qkv.weight'
    assert torch.equal(ours[key], saved['state_dict'][key])
    raw = {k.removeprefix('module.'): value for k, value in saved['ema_state_dict'].items()}
    assert not torch.equal(ours[key], raw[key])


def test_transfers_run_in_the_config_s_mixed_precision(softmax, run, monkeypatch, tmp_path):
    seen = []
    forward = AttentionTransfer.forward

    def noted(self, *args, **kwargs):
        loss = forward(self, *args, **kwargs)['loss']
        seen.append((self.target, torch.is_autocast_enabled('cpu'), loss.dtype))
        assert loss.isfinite()
        return dict(loss=loss)

    monkeypatch.setattr(AttentionTransfer, 'forward', noted)
    command = ['linearise', *softmax, '--attn', 'STILLAttention', '--iters', 1, 1, 1, '--no-test']
    # mmengine's own, which stops on a CPU.
    amp = ['optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.dtype=bfloat16']
    run(*command, '--work-dir', 'half', '--cfg-options', *amp)
    assert seen == [(target, True, torch.float32) for target in ('attention', 'features')]
    weights = load_checkpoint_file(tmp_path / 'half/linearised.pth')['state_dict']
    assert all(value.isfinite().all() for value in weights.values())
    assert {value.dtype for value in weights.values()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--attn', 'Linformer'], "There is no linear attention 'Linformer'"),
        (['--attn', 'ReLUAttention', '--stages', '5'], 'has the stages 1 to 4, not 5'),
        (['--attn', 'ReLUAttention', '--stages', '1', '2'], 'linear already: softmax is that of 3'),
        (
            ['--attn', 'STILLAttention', '--attn-options', 'feature_map=elu'],
            "Unknown feature_map 'elu'",
        ),
        (
            [
                '--attn',
                'ReLUAttention',
                '--cfg-options',
                'model.backbone.arch.embed_dims=[8,8,16,32]',
            ],
            'softmax.pth is of another model',
        ),
        (
            ['--attn', 'ReLUAttention', '--cfg-options', 'model.backbone.type=mmseg.ResNetV1c'],
            "backbone 'ResNetV1c' cannot be linearised",
        ),
    ],
    ids=lambda value: None if isinstance(value, list) else value,
)
def test_wrong_inputs_end_in_one_sentence(options, message, softmax, run, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run('linearise', *softmax, *options, '--work-dir', tmp_path / 'wrong')
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('error: ') and message in error
    assert not list((tmp_path / 'wrong').glob('*.pth'))


def test_missing_files_and_another_works_folder_are_refused(softmax, run, capsys, tmp_path):
    config, checkpoint = softmax
    with pytest.raises(SystemExit):
        run('linearise', config, 'absent.pth', '--attn', 'ReLUAttention')
    assert 'checkpoint absent.pth does not exist' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run('linearise', config, f'file://{checkpoint}', '--attn', 'ReLUAttention')
    assert 'softmax.pth is a URL' in capsys.readouterr().err
    command = ['linearise', config, checkpoint, '--iters', 0, 0, 0, '--no-test']
    run(*command, '--work-dir', 'one', '--attn', 'ReLUAttention')
    with pytest.raises(SystemExit):
        run(*command, '--work-dir', 'one', '--attn', 'ELUAttention')
    assert "'ReLUAttention'}, not {'type': 'ELUAttention'})" in capsys.readouterr().err
    command += ['--work-dir', 'one', '--attn', 'ReLUAttention']
    with pytest.raises(SystemExit):
        run(*command, '--cfg-options', 'randomness.seed=7')
    assert 'one holds results of other settings (config ' in capsys.readouterr().err
    weights = load_checkpoint_file(checkpoint)['state_dict']
    torch.save(dict(state_dict={key: value + 1 for key, value in weights.items()}), checkpoint)
    with pytest.raises(SystemExit):
        run(*command)
    assert 'one holds results of other settings (weights ' in capsys.readouterr().err
    for option in ('--attn-options', '--backbone-options'):
        with pytest.raises(SystemExit):
            run(*command, option, 'type=RALA')
        assert f'{option} takes no type' in capsys.readouterr().err


def test_what_the_first_process_cannot_write_is_told_to_all(softmax, run, capsys, monkeypatch):
    def fail(*_, **__):
        raise PermissionError(13, 'Permission denied', 'one')

    told = []
    monkeypatch.setattr('mirrorla_mm.engine.linearise_stages.keep_settings', fail)
    monkeypatch.setattr('mirrorla_mm.engine.distributed.broadcast_object_list', told.extend)
    with pytest.raises(SystemExit):
        run('linearise', *softmax, '--attn', 'ReLUAttention', '--work-dir', 'one')
    assert isinstance(told[1], PermissionError)
    assert "Permission denied: 'one'" in capsys.readouterr().err


def test_what_the_first_process_refuses_all_refuse(softmax, run, capsys, monkeypatch, tmp_path):
    def receive(data):
        data[:] = [None, UserError('The folder one is taken.')]

    module = 'mirrorla_mm.engine.distributed'
    monkeypatch.setattr(f'{module}.is_main_process', lambda: False)
    monkeypatch.setattr(f'{module}.broadcast_object_list', receive)
    with pytest.raises(SystemExit):
        run('linearise', *softmax, '--attn', 'ReLUAttention', '--work-dir', 'one')
    assert 'error: The folder one is taken.' in capsys.readouterr().err
    assert not (tmp_path / 'one/settings.json').exists()
