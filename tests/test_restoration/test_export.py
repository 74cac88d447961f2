"""Graphs of super-resolution models for other runtimes."""

import pytest

from mirrorla_mm.engine.export import export, largest_error, prepare
from mirrorla_mm.restoration.restorer import Restorer
from tests.test_restoration.toy import TOY

# Sizes that are multiples of the window, that are not, and smaller than the traced one.
UNSEEN = [(16, 20), (9, 13), (67, 50)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kind', 'attn_cfg'),
    [
        ('onnx', dict(type='LSA')),
        ('onnx', dict(type='ReLUAttention', reflection={})),
        ('torch', dict(type='ReLUAttention', reflection={})),
    ],
    ids=['onnx-lsa', 'onnx-mirror', 'torch-mirror'],
)
def test_graphs_take_images_of_any_size_and_number(tmp_path, kind, attn_cfg):
    backbone = dict(TOY, type='mirrorla_mm.DCTLSA', upscale=2, num_groups=1, attn_cfg=attn_cfg)
    model = prepare(Restorer(backbone))
    file = tmp_path / ('model.onnx' if kind == 'onnx' else 'model.pt2')
    export(model, file, kind, shape=(32, 40))
    assert largest_error(model, file, kind, UNSEEN) < 1e-5
    assert largest_error(model, file, kind, UNSEEN[1:], batch=3) < 1e-5
