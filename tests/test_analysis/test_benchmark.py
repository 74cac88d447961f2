"""The yardstick computes what its authors' host computes, and ratios and memory mean what they say.

The yardstick is written apart from the package's own host, which reproduces the authors' outputs
(tests/test_model_converters.py): each is a test of the other.
"""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from mirrorla_mm.analysis.benchmark import (
    PEERS,
    Subject,
    build_model,
    build_step,
    elapsed,
    images,
    measure_latency,
    measure_memory,
    parse_variant,
    reference_backbone,
    step_builder,
    with_peers,
)
from mirrorla_mm.converters import convert_ravlt
from mirrorla_mm.registry import MODELS

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = dict(embed_dims=(16, 32, 48, 64), depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4))


@pytest.mark.parametrize('layout', ['paper', 'linear'])
def test_the_yardstick_is_ravlt_under_its_published_names(layout):
    yardstick = reference_backbone(SMALL, layout).eval()
    for name, parameter in yardstick.named_parameters():
        if 'gamma' in name or 'norm' in name:
            nn.init.normal_(parameter, 0.8, 0.3)
    converted = convert_ravlt(yardstick.state_dict(), layout=layout)
    model = nn.ModuleDict(dict(backbone=MODELS.build(converted.backbone))).eval()
    model.load_state_dict(converted.state_dict)
    x = torch.rand(2, 3, 75, 97)
    with torch.no_grad():
        for ours, theirs in zip(model['backbone'](x), yardstick(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_variants_take_turns_and_ratios_refer_to_the_first():
    subject = Subject(arch=SMALL, threads=1)
    first, second = measure_latency(subject, ['reference', 'deploy'], (32, 48), rounds=3)
    assert (first.variant, second.variant) == ('reference', 'deploy')
    assert first.ratios == [1.0] * 3
    assert second.ratios == [b / a for a, b in zip(first.latencies, second.latencies)]


def test_what_was_started_on_a_gpu_before_is_not_timed(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: events.append('wait'))
    seconds = elapsed(lambda: events.append('run'), 'cuda', lambda: events.append('clock') or 1.0)
    assert events == ['wait', 'clock', 'run', 'wait', 'clock'] and seconds == 0


@pytest.mark.slow
def test_memory_of_a_training_step_is_at_least_its_gradients_and_activations():
    subject = Subject(arch=SMALL, train=True, threads=1)
    shape = (256, 256)
    activations = 10 * 16 * 64 * 64 * 4  # ten maps of stage 1, of the many that backward needs
    step, process = measure_memory(subject, 'eager', shape)
    assert step > activations / 2**20
    assert process > step


def test_gradients_do_not_outlive_the_step():
    subject = Subject(arch=SMALL, train=True, threads=1)
    seen = []
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: seen.extend(p.grad is None for p in module.parameters(recurse=False))
    )
    try:
        step = build_step(subject, 'eager')
        for _ in range(2):
            step(images(subject, (64, 64)))
    finally:
        handle.remove()
    assert seen and all(seen)


def test_peers_run_beside_ours_and_where_ours_is_exported_so_are_they():
    assert with_peers(['deploy'], ['resnet50']) == ['deploy', 'resnet50']
    variants = with_peers(['deploy', 'onnx'], ['resnet50', 'swin-t'])
    assert variants[2:] == ['resnet50', 'swin-t', 'resnet50+onnx', 'swin-t+onnx']


@pytest.mark.parametrize('peer', PEERS)
def test_a_peer_is_the_upstream_backbone_with_its_channels(peer):
    model, channels = build_model(Subject(), {peer}), PEERS[peer][1]
    assert type(model).__module__.startswith('mmdet.')
    model.eval()
    with torch.no_grad():
        assert tuple(y.shape[1] for y in model(torch.rand(1, 3, 64, 64))) == channels


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="Unknown variant 'deploy\\+int8'"):
        parse_variant('deploy+int8')


@pytest.mark.parametrize('words', ['bf16+onnx', 'amp+onnx', 'compile+onnx', 'resnet50+swin-t'])
def test_words_that_exclude_each_other_are_refused(words):
    first, second = words.split('+')
    with pytest.raises(ValueError, match=f'joins {first} and {second}, which exclude each other'):
        parse_variant(words)


def test_what_builds_a_step_can_be_sent_to_another_process():
    """Memory is measured in one, where the exporter has not run."""
    build = pickle.loads(pickle.dumps(step_builder(Subject(arch=SMALL, threads=1), 'deploy')))
    maps = build()(torch.rand(1, 3, 32, 32))
    assert [y.shape[1] for y in maps] == list(SMALL['embed_dims'])


def test_a_peer_takes_the_backbone_s_place_in_a_detector():
    """With as many stages as ours; mmdet's FPN takes its channels as a list alone."""
    config = REPOSITORY / 'configs/retinanet/retinanet_mirrorla-t-linear_fpn_1x_coco.py'
    model = build_model(Subject(config=str(config)), {'swin-t'})
    assert type(model.backbone).__name__ == 'SwinTransformer'
    assert model.backbone.out_indices == (1, 2, 3)
    assert model.neck.in_channels == list(PEERS['swin-t'][1][1:])
