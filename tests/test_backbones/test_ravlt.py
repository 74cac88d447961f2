from collections import Counter

import pytest
import torch
from torch import nn

from mirrorla_mm.backbones import RAVLT, MirrorLA, NaLaFormer
from mirrorla_mm.backbones.layers import Block
from mirrorla_mm.backbones.ravlt import ARCHS
from mirrorla_mm.ops import use_backend
from tests.archs import TOY

HOSTS = [RAVLT, MirrorLA]


def parameters_in_millions(model):
    return sum(p.numel() for p in model.parameters()) / 1e6


@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize('layout', ['hybrid', 'linear', ('softmax', 'linear', 'linear', 'softmax')])
@pytest.mark.parametrize('size', [(64, 64), (70, 90), (33, 47), (1, 1)])
def test_any_size_gives_strides_rounded_up(host, layout, size):
    outputs = host(TOY, layout).eval()(torch.rand(2, 3, *size))
    expected = [
        (2, c, -(-size[0] // s), -(-size[1] // s))
        for c, s in zip(TOY['embed_dims'], (4, 8, 16, 32))
    ]
    assert [tuple(y.shape) for y in outputs] == expected
    assert all(y.isfinite().all() for y in outputs)


# Published sizes with the classifier head, less that head: a 1x1 convolution to 1024 channels with
# bias, its batch norm and 1000 classes.
@pytest.mark.parametrize(
    'arch, with_head', [('xt', 6.13), ('t', 14.90), ('s', 25.59), ('b', 48.24), ('l', 95.24)]
)
def test_parameters_are_the_published_ones(arch, with_head):
    channels = ARCHS[arch]['embed_dims'][-1]
    head = (channels * 1024 + 1024 + 2048 + 1024 * 1000 + 1000) / 1e6
    ravlt = parameters_in_millions(RAVLT(arch, out_norm=False)) + head
    assert ravlt == pytest.approx(with_head, rel=1e-3)
    mirror = parameters_in_millions(MirrorLA(arch, out_norm=False)) + head
    assert 0 < mirror - ravlt < 0.01


@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize('layout', ['hybrid', 'linear'])
def test_every_parameter_learns(host, layout):
    model = host(TOY, layout, drop_path_rate=0.0)
    sum(y.square().sum() for y in model(torch.rand(2, 3, 48, 40))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_checkpointing_changes_memory_and_not_gradients():
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(1)
        model = MirrorLA(TOY, 'linear', with_cp=with_cp, drop_path_rate=0.5)
        torch.manual_seed(2)
        sum(y.square().mean() for y in model(torch.rand(2, 3, 40, 40))).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_out_indices_choose_outputs_and_norms():
    model = RAVLT(TOY, out_indices=(1, 3)).eval()
    assert set(model.norms) == {'1', '3'}
    assert [y.shape[1] for y in model(torch.rand(1, 3, 64, 64))] == [16, 32]


@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_frozen_stages_neither_learn_nor_leave_evaluation(frozen_stages):
    model = RAVLT(TOY, frozen_stages=frozen_stages).train()
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    if frozen_stages < 0:
        assert not frozen
        return
    parts = {n.split('.')[0] + '.' + n.split('.')[1] for n in frozen if not n.startswith('stem')}
    stages = {f'stages.{i}' for i in range(frozen_stages)}
    assert parts == stages | {f'downsamples.{i}' for i in range(frozen_stages - 1)}
    assert not any(n.startswith('stem') for n in trainable)
    assert not model.stem.training
    # What feeds the first trainable stage still learns.
    if frozen_stages < 4 and frozen_stages > 0:
        assert any(n.startswith(f'downsamples.{frozen_stages - 1}') for n in trainable)
    sum(y.sum() for y in model(torch.rand(2, 3, 32, 32))).backward()


def test_hooks_of_layers_fire_once_in_the_plain_form_alone():
    model, calls = RAVLT(TOY, 'linear').eval(), Counter()
    block = model.stages[0][0]
    for name in ('attn', 'attn.proj', 'norm2', 'ffn'):
        block.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.update([name]))
    with torch.no_grad():
        model(torch.rand(2, 3, 48, 40))
        assert calls == {'attn': 1, 'norm2': 2}  # of each image
        calls.clear()
        with use_backend('torch'):
            model(torch.rand(2, 3, 48, 40))
    assert calls == {'attn': 1, 'attn.proj': 1, 'norm2': 1, 'ffn': 1}


def test_norm_eval_keeps_running_statistics():
    model = RAVLT(TOY, norm_eval=True).train()
    before = {k: v.clone() for k, v in model.state_dict().items() if 'running' in k}
    model(torch.rand(2, 3, 32, 32))
    after = model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert model.stages.training


def test_drop_path_rises_to_the_rate_and_defaults_to_the_arch():
    def rates(model):
        return [getattr(b.drop_path, 'drop_prob', 0.0) for stage in model.stages for b in stage]

    assert rates(RAVLT(TOY, drop_path_rate=0.4)) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert rates(RAVLT(TOY)) == [0] * 5
    assert rates(RAVLT('xt'))[-1] == pytest.approx(0.05)


@pytest.mark.parametrize(
    'host, arch, rate, scale',
    [
        (RAVLT, 'xt', 0.05, (1, 1, 1, 1)),
        (RAVLT, 't', 0.1, (1, 1, 1, 1)),
        (RAVLT, 's', 0.15, (1, 1, 1, 1)),
        (RAVLT, 'b', 0.4, (1, 1, 1e-6, 1e-6)),
        (RAVLT, 'l', 0.55, (1e-6, 1e-6, 1e-6, 1e-6)),
        (NaLaFormer, 'xt', 0.1, (1, 1, 1, 1)),
        (NaLaFormer, 'b', 0.4, (1, 1, 1e-6, 1e-6)),
    ],
)
def test_archs_drop_and_scale_as_published(host, arch, rate, scale):
    narrow = dict(embed_dims=(4, 4, 4, 4), num_heads=(1, 1, 1, 1))
    model = host({**host.archs[arch], **narrow})
    assert model.stages[-1][-1].drop_path.drop_prob == pytest.approx(rate)
    for stage, start in zip(model.stages, scale):
        for block in stage:
            assert block.gamma1.unique().item() == pytest.approx(start)
            assert block.gamma2.unique().item() == pytest.approx(start)


def test_layer_scale_starts_per_stage():
    model = RAVLT({**TOY, 'layer_scale': (1.0, 0.5, 0.1, 1e-6)})
    starts = [stage[0].gamma1[0].item() for stage in model.stages]
    assert starts == pytest.approx([1.0, 0.5, 0.1, 1e-6])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('layout', ['hybrid', 'linear'])
def test_autocast_gives_finite_losses_and_gradients(dtype, layout):
    model = MirrorLA(TOY, layout)
    with torch.autocast('cpu', dtype=dtype):
        outputs = model(torch.zeros(2, 3, 40, 40))
        loss = sum(y.float().square().mean() for y in outputs)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_memory_format_of_the_input_does_not_matter():
    model = MirrorLA(TOY, 'linear').eval()
    x = torch.rand(2, 3, 40, 56)
    torch.testing.assert_close(model(x), model(x.contiguous(memory_format=torch.channels_last)))


def test_weights_of_another_architecture_in_an_upstream_config_are_left_out():
    assert RAVLT(TOY, pretrained='open-mmlab://resnet50_v1c').init_cfg is None
    own = RAVLT(TOY, pretrained='mirrorla-t.pth').init_cfg
    assert own == dict(type='Pretrained', checkpoint='mirrorla-t.pth')


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(arch='m'), "Unknown arch 'm'; choose from xt, t, s, b, l or give a dict"),
        (dict(arch=dict(embed_dims=(8,), depths=(1,))), r"missing: \['num_heads'\], unknown: \[\]"),
        (dict(arch={**TOY, 'head': 1}), r"unknown: \['head'\]"),
        (dict(arch={**TOY, 'depths': (1, 1)}), 'need one value a stage'),
        (
            dict(arch={**TOY, 'layer_scale': (1, 1)}),
            'layer_scale of an arch need one value a stage',
        ),
        (
            dict(layout='half'),
            "layout needs to be one of 'hybrid', 'linear', 'paper' or a sequence",
        ),
        (dict(layout=('linear', 'softmax')), 'one for each of the 4 stages'),
        (dict(out_indices=(0, 4)), 'out_indices needs ascending stages from 0 to 3'),
        (dict(out_indices=()), 'out_indices needs ascending stages'),
        (dict(frozen_stages=5), 'frozen_stages needs to be -1 .none., 0 .stem. or 1 to 4'),
    ],
)
def test_mistakes_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        RAVLT(**{'arch': TOY, **options})


def test_each_stage_may_have_an_attention_of_its_own():
    cfgs = [dict(type='RALA'), None, dict(type='ReLUAttention'), dict(type='STILLAttention')]
    model = RAVLT(TOY, ('linear', 'softmax', 'linear', 'linear'), cfgs)
    found = [type(stage[0].attn).__name__ for stage in model.stages]
    assert found == ['RALA', 'SoftmaxAttention', 'ReLUAttention', 'STILLAttention']
    with pytest.raises(ValueError, match='one for each of the 4 stages, got 2'):
        RAVLT(TOY, 'linear', cfgs[:2])


@pytest.mark.parametrize('onto', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_layer_scale_and_drop_path_are_one_factor(dtype, onto):
    """The same images are dropped as by ``drop_path(gamma * branch)``, in any dtype."""
    block = Block(8, 2, dict(type='RALA'), drop_path=0.5).train()
    x, branch = torch.randn(32, 5, 8).to(onto), torch.randn(32, 5, 8).to(dtype)
    nn.init.normal_(block.gamma1)
    runs = []
    for add in (block._add, lambda x, y, gamma: x + block.drop_path(gamma * y)):
        inputs = x.clone().requires_grad_(), branch.clone().requires_grad_(), block.gamma1
        torch.manual_seed(3)
        y = add(*inputs)
        runs.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    torch.testing.assert_close(*runs, rtol=0.02 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    kept = (runs[0][0] != x).flatten(1).any(1)
    assert kept.any() and not kept.all()


def test_weights_lie_as_others_expect():
    """Optimizers that resume, and safetensors, go by the order in memory."""
    assert all(p.is_contiguous() for p in RAVLT(TOY, 'linear').parameters())
