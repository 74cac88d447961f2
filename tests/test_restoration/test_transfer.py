"""What a transfer teaches the attentions of a host, and what it leaves alone."""

import pytest
import torch

from mirrorla_mm.registry import MODELS
from mirrorla_mm.restoration import transfer
from mirrorla_mm.restoration.dctlsa import pad_by_reflection
from mirrorla_mm.restoration.transfer import attended, blocks_of, explained, outputs
from tests.test_restoration.toy import TOY, toy_host

RELU = dict(type='ReLUAttention')


def pair(**options):
    """A teacher, and a student with its weights but for the attention's own."""
    teacher = toy_host()
    student = toy_host(**options)
    student.load_state_dict(teacher.state_dict(), strict=False)
    return teacher, student


def test_a_copy_of_the_teacher_explains_all_and_one_vector_a_window_nothing():
    teacher, student = pair()
    images = [torch.rand(1, 3, *size) for size in ((13, 10), (8, 8), (3, 5))]
    assert explained(teacher, student, images) == pytest.approx(1, abs=1e-9)
    for block in blocks_of(student):
        torch.nn.init.zeros_(block.attn.proj.weight)
        torch.nn.init.normal_(block.attn.proj.bias)
    assert explained(teacher, student, images) == pytest.approx(0, abs=1e-5)


def test_maps_are_those_of_the_pass():
    # In float32 a normaliser near 0 would make much of the rounding.
    host = toy_host(attn_cfg=RELU).double()
    images = torch.rand(2, 3, 7, 12, dtype=torch.float64)
    pairs = attended(host, images)
    first = host.groups[0][0]
    x = pad_by_reflection(host.stem(images), 4).permute(0, 2, 3, 1)
    local = first.blocks[0].local(first.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(pairs[0][0], local)
    for block, (x, y) in zip(blocks_of(host), pairs):
        assert x.shape == (2, 8, 12, 8) and not block.attn._forward_hooks
        torch.testing.assert_close(y, block.attend(x))


def test_every_attention_learns_on_the_teachers_map_alone():
    teacher, student = pair(attn_cfg=RELU)
    images = torch.rand(2, 3, 8, 8)
    before = [ours for ours, _ in outputs(teacher, student, images)]
    with torch.no_grad():
        for parameter in blocks_of(student)[0].parameters():
            parameter.add_(1)
    after = [ours for ours, _ in outputs(teacher, student, images)]
    changed = [not torch.equal(*both) for both in zip(before, after)]
    assert changed == [True, *[False] * 7]


def test_windows_of_another_size_lie_where_the_student_has_them(monkeypatch):
    teacher, student = pair(attn_cfg=dict(type='SoftmaxAttention'), window_size=8)
    maps = [(torch.rand(1, 16, 16, 8), None) for _ in blocks_of(teacher)]
    moved = [(x.clone(), None) for x, _ in maps]
    for x, _ in moved:
        x[0, 5, 6] += 1
    found = []
    for given in (maps, moved):
        monkeypatch.setattr(transfer, 'attended', lambda *args, given=given: given)
        found.append([ours for ours, _ in outputs(teacher, student, torch.rand(1, 3, 16, 16))])
    for before, after, old, new in zip(*found, blocks_of(teacher), blocks_of(student)):
        # The teacher's map is rolled: what lies in row 5 of it comes from row 5 + shift.
        reached = (before != after).any(-1)[0].roll((old.shift, old.shift), (0, 1)).nonzero()
        token = torch.tensor([5, 6]) + old.shift
        window = (token - new.shift) // 8
        assert len(reached) == 64
        assert (((reached - new.shift) % 16) // 8 == window % 2).all()


def test_maps_that_cannot_be_cut_are_named():
    teacher, student = pair(attn_cfg=RELU, window_size=8)
    with pytest.raises(ValueError, match='Maps of 12x12 cannot be cut into windows of 8'):
        list(outputs(teacher, student, torch.rand(1, 3, 12, 12)))


def slot_transfer():
    backbone = dict(type='mirrorla_mm.DCTLSA', upscale=2, **TOY)
    student = dict(backbone, attn_cfg=dict(RELU, reflection={}))
    return MODELS.build(
        dict(type='mirrorla_mm.SlotTransfer', teacher=backbone, backbone=student)
    ).train()


def test_the_loss_is_the_error_over_the_variance():
    model, inputs, expected = slot_transfer(), torch.rand(2, 3, 8, 8), []
    for ours, theirs in outputs(model.teacher, model.backbone, inputs):
        variance = (theirs - theirs.mean()).square().sum() / (theirs.numel() - 1)
        expected.append((ours - theirs).square().mean() / variance)
    torch.testing.assert_close(model(inputs)['loss'], sum(expected) / len(expected))


def test_the_loss_falls_and_nothing_else_moves():
    model = slot_transfer()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    inputs = torch.rand(2, 3, 8, 8)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model(inputs)['loss']
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(before[key], value)
    }
    assert moved == {key for key in before if key.startswith('backbone.') and '.attn.' in key}
    with pytest.raises(NotImplementedError, match='trained, not tested'):
        model(inputs, mode='predict')
