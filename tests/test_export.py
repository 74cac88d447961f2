import pytest
import torch
from mmengine.registry import init_default_scope

from mirrorla_mm.backbones import MirrorLA
from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.engine.export import RawOutputs, export, largest_error, prepare
from mirrorla_mm.registry import MODELS
from tests.archs import TINY

BACKBONE = dict(type='mirrorla_mm.MirrorLA', arch=TINY, layout='linear')
CHANNELS = list(TINY['embed_dims'])
# Sizes that were not traced: odd, and smaller than the traced one.
UNSEEN = [(97, 131), (64, 90)]


def segmentor():
    init_default_scope('mmseg')
    head = dict(
        type='mirrorla_mm.EfficientViTHead',
        in_channels=CHANNELS[1:],
        in_index=[1, 2, 3],
        channels=8,
        num_classes=3,
    )
    return MODELS.build(dict(type='mmseg.EncoderDecoder', backbone=BACKBONE, decode_head=head))


def detector():
    init_default_scope('mmdet')
    neck = dict(type='mmdet.FPN', in_channels=CHANNELS, out_channels=8, num_outs=4)
    head = dict(
        type='mmdet.RetinaHead', num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1
    )
    return MODELS.build(dict(type='mmdet.RetinaNet', backbone=BACKBONE, neck=neck, bbox_head=head))


@pytest.mark.slow
def test_backbone_to_onnx_at_unseen_sizes(tmp_path):
    layout = ('linear', 'linear', 'softmax', 'linear')
    model, file = prepare(MirrorLA(TINY, layout)), tmp_path / 'model.onnx'
    export(model, file, 'onnx')
    assert largest_error(model, file, 'onnx', UNSEEN) < 1e-4
    assert largest_error(model, file, 'onnx', UNSEEN[:1], batch=3) < 1e-4


@pytest.mark.slow
def test_backbone_to_torch_export_at_unseen_sizes_and_a_wrong_graph_is_noticed(tmp_path):
    model, file = prepare(MirrorLA(TINY)), tmp_path / 'model.pt2'
    export(model, file, 'torch')
    assert largest_error(model, file, 'torch', UNSEEN) < 1e-4
    with torch.no_grad():
        model.model.norms['0'].bias.add_(1)
    assert largest_error(model, file, 'torch', UNSEEN[:1]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize('build', [segmentor, detector])
def test_segmentor_and_dense_detector_to_onnx(build, tmp_path):
    model, file = prepare(build()), tmp_path / 'model.onnx'
    export(model, file, 'onnx')
    assert largest_error(model, file, 'onnx', UNSEEN) < 1e-4


def test_two_stage_detectors_are_refused_in_one_sentence():
    class TwoStage(torch.nn.Module):
        backbone = None

    with pytest.raises(UserError, match='TwoStage cannot be exported'):
        RawOutputs(TwoStage())
