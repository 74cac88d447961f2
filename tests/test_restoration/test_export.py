"""Graphs of super-resolution models for other runtimes."""

import pytest

from mirrorla_mm.engine.export import export, largest_error, prepare
from mirrorla_mm.restoration.restorer import Restorer
from tests.test_restoration.toy import TOY

# Sizes that are and are no multiples of the window, smaller and larger than the traced one.
UNSEEN = [(16, 20), (67, 50)]
# What tools/export.py accepts: queries that are nearly clipped divide by almost nothing.
TOLERANCE = 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'name'), [('onnx', 'model.onnx'), ('torch', 'model.pt2')])
def test_graphs_take_images_of_any_size_and_number(tmp_path, kind, name):
    attn_cfg = dict(type='ReLUAttention', reflection={})
    backbone = dict(TOY, type='mirrorla_mm.DCTLSA', upscale=2, num_groups=1, attn_cfg=attn_cfg)
    model, file = prepare(Restorer(backbone)), tmp_path / name
    export(model, file, kind, shape=(32, 40))
    assert largest_error(model, file, kind, UNSEEN) < TOLERANCE
    assert largest_error(model, file, kind, UNSEEN[1:], batch=3) < TOLERANCE
