"""The drawing of the benchmark names every line, and names do not cover each other."""

import pytest
from matplotlib.image import imread

from mirrorla_mm.analysis.benchmark import Timing
from mirrorla_mm.analysis.benchmark_plot import colours, draw, label, spread


def test_names_near_each_other_are_moved_apart_around_their_middle():
    assert spread([1.0, 100.0], 2.0) == [1.0, 100.0]
    low, high = spread([10.0, 10.0], 4.0)
    assert (low, high) == pytest.approx((5, 20))
    places = spread([8.0, 1.0, 9.0, 10.0, 2.5], 2.0)
    order = sorted(places)
    assert all(above >= 2 * below * 0.999 for below, above in zip(order, order[1:]))
    assert sorted(range(5), key=places.__getitem__) == [1, 4, 0, 2, 3]


@pytest.mark.parametrize(
    'variant, text',
    [
        ('eager', 'MirrorLA'),
        ('onnx', 'MirrorLA, onnxruntime'),
        ('resnet50+onnx', 'ResNet-50, onnxruntime'),
        ('eager+compile', 'MirrorLA, torch.compile'),
    ],
)
def test_variants_have_names(variant, text):
    assert label(variant) == text


def test_no_two_lines_have_one_colour():
    variants = ['reference', 'eager', 'deploy', 'bf16', 'resnet50', 'swin-t', 'pvtv2-b1']
    assert len(set(colours(variants * 2).values())) == len(variants)


@pytest.mark.parametrize('memory', [None, (30.0, 500.0)])
def test_a_panel_each_for_what_was_measured(tmp_path, memory):
    rows = [
        (Timing(variant, (side, side), [side**2 / 1e6], [1.0]), memory)
        for variant in ('eager', 'resnet50')
        for side in (32, 64)
    ]
    draw(rows, tmp_path / 'speed.png', 'a processor')
    height, width, _ = imread(tmp_path / 'speed.png').shape
    assert round(width / height) == (1 if memory is None else 3)
