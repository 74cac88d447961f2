"""Which layers become linear, what is copied, and what the attention transfer learns."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement

from mirrorla_mm.engine.checkpoint import CheckpointError
from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.engine.linearise import layers_of, linear_backbone, linear_config, swin_warning
from mirrorla_mm.engine.linearise_model import (
    AttentionTransfer,
    build_backbone,
    copy_weights,
    fill_backbone,
    heads_of,
    layer_errors,
    layer_inputs,
    read_checkpoint,
)
from mirrorla_mm.registry import MODELS

SMALL = dict(embed_dims=(8, 8, 16, 16), depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2))
SWIN = dict(embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=4)
PVT = dict(embed_dims=8, num_layers=(1, 1, 2, 1), num_heads=(1, 1, 2, 2), mlp_ratios=(2,) * 4)
BACKBONES = {
    'ravlt': dict(type='mirrorla_mm.RAVLT', arch=SMALL),
    'mirrorla': dict(type='mirrorla_mm.MirrorLA', arch=SMALL, layout='hybrid'),
    'nalaformer': dict(type='mirrorla_mm.NaLaFormer', arch=SMALL),
    'swin': dict(type='mmdet.SwinTransformer', **SWIN),
    'linear swin': dict(type='mirrorla_mm.LinearSwin', **SWIN),
    'pvt': dict(type='mmdet.PyramidVisionTransformer', **PVT),
    'linear pvt': dict(type='mirrorla_mm.LinearPVT', layout='hybrid', **PVT),
}
every_backbone = pytest.mark.parametrize('name', BACKBONES)
IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
# Exact for all tokens: what it puts out is softmax attention.
EXACT = dict(type='STILLAttention', window=8, top_k=64, max_selected=None)


def built(cfg):
    backbone = build_backbone(cfg)
    backbone.eval()
    return backbone.requires_grad_(False)


def pair(name, attn, stages=(3, 4)):
    teacher = built(BACKBONES[name])
    student = built(linear_backbone(BACKBONES[name], attn, stages))
    return teacher, student, copy_weights(teacher, student), layers_of(student, stages)


@every_backbone
def test_only_the_chosen_stages_change_and_all_that_is_shared_is_copied(name):
    teacher, student, new, layers = pair(name, dict(type='STILLAttention'))
    assert len(layers) == 3 and layers == layers_of(teacher, (3, 4))
    assert new and all(any(key.startswith(f'{layer}.') for layer in layers) for key in new)
    ours = student.state_dict()
    for key, value in teacher.state_dict().items():
        if key in ours and not any(key.startswith(layer) for layer in layers):
            assert torch.equal(ours[key], value)
    other = layers_of(teacher, (1, 2))
    for layer in other:
        # LinearSwin has a class of its own for the windows that it keeps.
        assert isinstance(student.get_submodule(layer), type(teacher.get_submodule(layer)))


@pytest.mark.parametrize('name', ['ravlt', 'mirrorla', 'nalaformer', 'pvt', 'linear pvt'])
def test_an_attention_that_is_exact_makes_no_error(name):
    """So targets are the heads of the teacher, on the teacher's input, in the teacher's order."""
    teacher, student, _, layers = pair(name, EXACT)
    errors = layer_errors(teacher, student, layers, (IMAGES,))
    assert list(errors) == layers and max(errors.values()) < 1e-8
    with torch.no_grad():
        for ours, theirs in zip(student(IMAGES), teacher(IMAGES)):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', ['ravlt', 'swin', 'pvt'])
def test_heads_are_what_the_projection_gets(name):
    teacher = built(BACKBONES[name])
    [layer] = layers_of(teacher, [4])
    x, hw_shape = layer_inputs(teacher, [layer], (IMAGES,))[layer]
    module = teacher.get_submodule(layer)
    heads = heads_of(module, x, hw_shape)
    projection = {'ravlt': 'proj', 'swin': 'w_msa.proj', 'pvt': 'attn.out_proj'}[name]
    projected = module.get_submodule(projection)(heads)
    identity = [torch.zeros_like(x)] if name == 'pvt' else []
    torch.testing.assert_close(projected, module(x, hw_shape, *identity), rtol=1e-4, atol=1e-5)


def test_ravlt_with_the_mirror_map_in_all_stages_is_mirrorla():
    new = linear_backbone(BACKBONES['ravlt'], dict(type='MirrorAttention'), [1, 2, 3, 4])
    assert new['type'] == 'mirrorla_mm.MirrorLA' and new['layout'] == 'linear'
    new = linear_backbone(BACKBONES['mirrorla'], dict(type='MirrorAttention'), [3, 4])
    assert new['type'] == 'mirrorla_mm.MirrorLA' and new['layout'] == 'linear'
    new = linear_backbone(BACKBONES['ravlt'], dict(type='MirrorAttention'), [3, 4])
    assert [cfg['type'] for cfg in new['attn_cfg']] == ['RALA'] * 2 + ['MirrorAttention'] * 2


def test_options_of_mirrorla_stay_with_the_stages_that_had_them():
    backbone = dict(BACKBONES['mirrorla'], reflection=dict(cross_head=False))
    new = linear_backbone(backbone, dict(type='MirrorAttention'), [3])
    model = MODELS.build(new)
    assert [stage[0].attn.__class__.__name__ for stage in model.stages][2:] == [
        'MirrorAttention',
        'SoftmaxAttention',
    ]
    assert model.stages[0][0].attn.reflection.u is None
    assert model.stages[2][0].attn.reflection.u is not None


def test_reduced_keys_stay_reduced_where_they_were():
    new = linear_backbone(BACKBONES['linear pvt'], dict(type='ReLUAttention'), [3])
    assert new['linear_sr_ratios'] == (1, 1, 2, 1)
    assert new['layout'] == ('linear', 'linear', 'linear', 'softmax')


def test_the_config_starts_from_nothing_of_the_old_backbone():
    backbone = dict(BACKBONES['swin'], init_cfg=dict(type='Pretrained', checkpoint='swin.pth'))
    cfg = Config(dict(model=dict(backbone=backbone, pretrained='swin.pth'), load_from='a.pth'))
    new = linear_config(cfg, dict(type='ReLUAttention'), [1])
    assert 'init_cfg' not in new.model.backbone and new.model.pretrained is None
    assert new.load_from is None and cfg.load_from == 'a.pth'


@pytest.mark.parametrize(
    ('backbone', 'attn', 'stages', 'message'),
    [
        (dict(type='mmdet.ResNet'), 'ReLUAttention', [3], "backbone 'ResNet' cannot be linearised"),
        (BACKBONES['ravlt'], 'ReLUAttention', [0, 3], 'has the stages 1 to 4, not 0, 3'),
        (BACKBONES['ravlt'], 'ReLUAttention', [], 'has the stages 1 to 4, not none'),
        (BACKBONES['ravlt'], 'SoftmaxAttention', [3], "no linear attention 'SoftmaxAttention'"),
        (
            BACKBONES['ravlt'],
            'Linformer',
            [3],
            "There is no linear attention 'Linformer'; choose from",
        ),
        (
            BACKBONES['mirrorla'],
            'ReLUAttention',
            [1, 2],
            'attention of the stages 1, 2 is linear already: softmax is that of 3, 4',
        ),
        (
            dict(BACKBONES['mirrorla'], layout='linear'),
            'ReLUAttention',
            [3],
            'has no softmax attention: there is nothing to linearise',
        ),
        (
            dict(BACKBONES['ravlt'], layout='linear', attn_cfg=dict(type='RALA')),
            'MirrorAttention',
            [1],
            'there is nothing to linearise',
        ),
        (
            dict(type='mirrorla_mm.DiT', arch='s', attn_cfg=dict(type='mirrorla_mm.ReLUAttention')),
            'MirrorAttention',
            [1],
            'there is nothing to linearise',
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(backbone, attn, stages, message):
    with pytest.raises(UserError, match=message):
        linear_backbone(backbone, dict(type=attn), stages)


def test_options_of_the_new_backbone_are_not_the_old_ones():
    cfg = Config(dict(model=dict(backbone=BACKBONES['swin'])))
    new = linear_config(cfg, dict(type='MirrorAttention'), [3, 4], dict(linear_window=4))
    student = built(new.model.backbone)
    assert student.stages[2].blocks[0].attn.window_size == 4
    copy_weights(built(cfg.model.backbone), student)


@pytest.mark.parametrize(
    ('name', 'attn', 'stage'),
    [('ravlt', 'AgentAttention', 3), ('dit', 'NaLaAttention', 1), ('dit', 'PolaAttention', 1)],
)
def test_an_attention_with_weights_of_another_shape_is_refused(name, attn, stage):
    backbone = DIT if name == 'dit' else BACKBONES[name]
    student = built(linear_backbone(backbone, dict(type=attn), [stage]))
    with pytest.raises(UserError, match=r'attn\.\S+ has the shape \[.*choose another'):
        copy_weights(built(backbone), student)


def test_norms_of_outputs_that_a_classifier_lacks_are_new(tmp_path):
    classifier = built(dict(BACKBONES['ravlt'], out_indices=(3,), out_norm=False))
    file = tmp_path / 'classifier.pth'
    weights = {f'backbone.{key}': value for key, value in classifier.state_dict().items()}
    torch.save(dict(state_dict={**weights, 'head.fc.weight': torch.zeros(9, 16)}), file)
    teacher = built(dict(BACKBONES['ravlt'], out_norm=True))
    fill_backbone(teacher, read_checkpoint(str(file)))
    ours = teacher.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in classifier.state_dict().items())
    assert ours.keys() - classifier.state_dict().keys()
    del weights['backbone.stages.2.0.attn.proj.weight']
    torch.save(dict(state_dict=weights), file)
    with pytest.raises(CheckpointError, match='of another model'):
        fill_backbone(teacher, read_checkpoint(str(file)))


def test_swin_alone_comes_with_a_warning():
    assert 'linear in the number of tokens already' in swin_warning(BACKBONES['swin'], [3])
    assert swin_warning(BACKBONES['pvt'], [3]) is None


# --- The transfer ---------------------------------------------------------------------------------


@pytest.fixture
def transfer(tmp_path):
    """A transfer from RAVLT with random weights, by its target."""

    def make(target, attn=dict(type='STILLAttention', window=2, top_k=0)):  # noqa: B006
        teacher, student, *_ = pair('ravlt', attn)
        files = [str(tmp_path / f'{name}.pth') for name in ('teacher', 'student')]
        for file, backbone in zip(files, (teacher, student)):
            weights = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
            torch.save(dict(state_dict=weights), file)
        backbones = BACKBONES['ravlt'], linear_backbone(BACKBONES['ravlt'], attn, (3, 4))
        model = AttentionTransfer(*backbones, files, (3, 4), target)
        model.init_weights()
        return model.train()

    return make


def test_the_attention_transfer_trains_what_is_new_and_nothing_else(transfer):
    model = transfer('attention')
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith('student.') for name in trained)
    assert all('.map_' in name or 'linear_gate' in name for name in trained)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(IMAGES)['loss']
        loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]
    changed = {key for key, v in model.state_dict().items() if not torch.equal(v, before[key])}
    assert changed == trained


def test_the_feature_transfer_trains_the_new_layers_by_the_output_maps(transfer):
    model = transfer('features')
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any(name.endswith('attn.qkv.weight') for name in trained)
    assert all(name.startswith(('student.stages.2', 'student.stages.3')) for name in trained)
    assert all('.attn.' in name for name in trained)
    model(IMAGES)['loss'].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_feature_loss_is_the_error_over_the_variance(transfer):
    model = transfer('features')
    expected = []
    for ours, theirs in zip(model.student(IMAGES), model.teacher(IMAGES)):
        variance = (theirs - theirs.mean()).square().sum() / (theirs.numel() - 1)
        expected.append((ours - theirs).square().mean() / variance)
    torch.testing.assert_close(model(IMAGES)['loss'], sum(expected) / len(expected))


def test_layers_learn_from_the_input_of_the_teacher(transfer):
    """Outputs of the student's earlier layers make no difference."""
    model = transfer('attention')
    expected = model(IMAGES)['loss']
    with torch.no_grad():
        model.student.stem[0].weight.zero_()
    torch.testing.assert_close(model(IMAGES)['loss'], expected)


def test_an_exact_attention_has_nothing_to_learn(transfer):
    for target in ('attention', 'features'):
        assert transfer(target, EXACT)(IMAGES)['loss'] < 1e-5


def test_a_transfer_is_not_tested_and_knows_two_targets(transfer):
    with pytest.raises(NotImplementedError, match='not tested'):
        transfer('attention')(IMAGES, mode='predict')
    with pytest.raises(ValueError, match="attention, features, got 'maps'"):
        transfer('maps')


# --- Diffusion transformers -----------------------------------------------------------------------

DIT = dict(
    type='mirrorla_mm.DiT',
    arch=dict(embed_dims=16, depth=2, num_heads=2),
    input_size=16,
    num_classes=3,
)


def test_the_blocks_of_a_dit_are_one_stage():
    new = linear_backbone(DIT, dict(type='ReLUAttention'), [1])
    assert new == dict(DIT, attn_cfg=dict(type='ReLUAttention'))
    assert layers_of(built(new), [1]) == ['blocks.0.attn', 'blocks.1.attn']
    with pytest.raises(UserError, match='1 to 1, not 3, 4: .* such as --stages 1'):
        linear_backbone(DIT, dict(type='ReLUAttention'), [3, 4])


@pytest.mark.parametrize('process', ['DDPM', 'Interpolant'])
def test_a_dit_learns_from_latents_noised_as_in_its_training(process, tmp_path):
    teacher = built(DIT)
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'dit.pth')  # a backbone alone
    student = linear_backbone(DIT, EXACT, [1])
    weights = {**built(student).state_dict(), **teacher.state_dict()}
    torch.save(dict(state_dict=weights), tmp_path / 'student.pth')
    files = [str(tmp_path / name) for name in ('dit.pth', 'student.pth')]
    model = AttentionTransfer(DIT, student, files, [1], process=dict(type=f'mirrorla_mm.{process}'))
    model.init_weights()
    samples = [BaseDataElement(gt_label=label) for label in (0, 2)]
    seen = []
    model.teacher.register_forward_pre_hook(lambda _, args: seen.append(args))
    latents = torch.randn(2, 4, 16, 16)
    assert model.train()(latents, samples)['loss'] < 1e-5
    [(x, t, y)] = seen
    assert y.tolist() == [0, 2] and t.shape == (2,) and x.shape == latents.shape
    assert not torch.allclose(x, latents)
    model.class_dropout = 1.0
    model(latents, samples)
    assert seen[-1][2].tolist() == [3, 3]  # the label of no class
