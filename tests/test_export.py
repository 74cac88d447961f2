import errno
import os
import runpy
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope

from mirrorla_mm.attention import graph
from mirrorla_mm.backbones import MirrorLA, layers
from mirrorla_mm.backbones.layers import Block
from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.engine.export import RawOutputs, export, largest_error, prepare
from mirrorla_mm.registry import MODELS
from tests.archs import TINY

TOOL = Path(__file__).parents[1] / 'tools' / 'export.py'
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


class TwoBlocks(torch.nn.Sequential):
    """A stage of two blocks, wide enough for the blocked layout of runtimes."""

    def __init__(self):
        block = partial(Block, 32, 2, dict(type='MirrorAttention'), mlp_ratio=3)
        super().__init__(torch.nn.Conv2d(3, 32, 3, 2, padding=1), block(), block())


@pytest.mark.slow
@pytest.mark.parametrize('wide', [False, True])
def test_what_onnxruntime_makes_of_a_stage(tmp_path, monkeypatch, wide):
    """Tables are made once, heads are never transposed, and convolutions add the residuals."""
    onnx, onnxruntime = map(pytest.importorskip, ('onnx', 'onnxruntime'))
    monkeypatch.setattr(graph, 'WIDE', 32 if wide else 33)
    monkeypatch.setattr(layers, 'GRAPH_PART', 32 if wide else 64)
    model, file = prepare(TwoBlocks()), tmp_path / 'model.onnx'
    export(model, file, 'onnx', (32, 40))
    assert largest_error(model, file, 'onnx', [(33, 47)], batch=3) < 1e-4
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / 'optimised.onnx')
    onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    kinds = Counter(node.op_type for node in nodes)
    turns = [tuple(node.input[1:]) for node in nodes if node.op_type == 'RotaryEmbedding']
    of_places = [tables for tables in turns if len(tables) == 3]
    assert (len(of_places), len(set(of_places))) == (4, 1)
    assert len(turns) - len(of_places) == (4 if wide else 0)  # reflections
    # 96 hidden channels: 64 and 32 where maps are large, all of them where they are not.
    parts = 1 if wide else 2
    assert (kinds['Gelu'], kinds['LayerNormalization']) == (2 * parts, 4)
    blocked = [node for node in nodes if node.domain == 'com.microsoft.nchwc']
    if not blocked:
        pytest.skip('this processor has no blocked layout')
    # The local enhancement, the attention and the parts of the feed-forward network, twice.
    assert sum(len(node.input) == 4 for node in blocked if node.op_type == 'Conv') == 4 + 2 * parts
    assert kinds['ReorderInput'] <= 8
    assert kinds['Transpose'] <= (0 if wide else 2)
    assert kinds['ReorderOutput'] <= 5


@pytest.mark.slow
def test_a_graph_says_the_sizes_of_convolutions_and_outputs_alone(tmp_path):
    onnx = pytest.importorskip('onnx')
    file = tmp_path / 'model.onnx'
    conv, linear = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(6, 5)
    export(prepare(torch.nn.Sequential(conv, torch.nn.GELU(), linear)), file, 'onnx', (8, 8))
    graph = onnx.load(file).graph
    producers = {name: node.op_type for node in graph.node for name in node.output}
    kinds = {
        producers[value.name]: value.type.tensor_type.HasField('shape')
        for value in [*graph.value_info, *graph.output]
        if value.name in producers
    }
    assert kinds.pop('Conv') and kinds.pop(producers[graph.output[0].name])
    assert 'Gelu' in kinds and not any(kinds.values())


@pytest.mark.slow
def test_backbone_to_torch_export_at_unseen_sizes_and_a_wrong_graph_is_noticed(tmp_path):
    model, file = prepare(MirrorLA(TINY)), tmp_path / 'model.pt2'
    export(model, file, 'torch')
    assert largest_error(model, file, 'torch', UNSEEN) < 1e-4
    with torch.no_grad():
        model.model.norms['0'].bias.add_(1)
    assert largest_error(model, file, 'torch', UNSEEN[:1]) > 0.1


@pytest.mark.parametrize('wrong', [0, 1])
def test_a_graph_that_gives_nan_is_noticed_whichever_output_it_is(monkeypatch, wrong):
    outputs = [torch.ones(2), torch.ones(2)]
    graph = [x.clone() for x in outputs]
    graph[wrong][1] = torch.nan
    monkeypatch.setattr('mirrorla_mm.engine.export.run', lambda *_: graph)
    assert not largest_error(lambda x: outputs, None, 'onnx', [(4, 4)]) < 1


@pytest.mark.slow
@pytest.mark.parametrize('build', [segmentor, detector])
def test_segmentor_and_dense_detector_to_onnx(build, tmp_path):
    model, file = prepare(build()), tmp_path / 'model.onnx'
    export(model, file, 'onnx')
    assert largest_error(model, file, 'onnx', UNSEEN) < 1e-4


def test_a_full_disk_leaves_an_earlier_export(tmp_path, monkeypatch):
    file = tmp_path / 'model.pt2'
    file.write_bytes(b'earlier')

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match=r'model\.pt2 cannot be written: No space left'):
        export(prepare(torch.nn.Conv2d(3, 4, 3)), file, 'torch', (8, 10))
    assert [path.name for path in tmp_path.iterdir()] == ['model.pt2']
    assert file.read_bytes() == b'earlier'


def test_an_export_gets_its_place_once_it_was_compared(tmp_path, monkeypatch, capsys):
    """As the command line does it, into a folder that is not there yet."""
    file, errors = tmp_path / 'new' / 'model.pt2', [0.0]
    monkeypatch.setattr('mirrorla_mm.backbones.MirrorLA', lambda *args: torch.nn.Conv2d(3, 4, 3))
    monkeypatch.setattr('mirrorla_mm.engine.export.largest_error', lambda *args: errors[0])
    monkeypatch.setattr('sys.argv', [str(TOOL), '--format', 'torch', '--out', str(file)])
    runpy.run_path(str(TOOL), run_name='__main__')
    written = file.read_bytes()
    errors[0] = 1.0
    file.write_bytes(b'earlier')
    with pytest.raises(SystemExit):
        runpy.run_path(str(TOOL), run_name='__main__')
    assert written.startswith(b'PK') and file.read_bytes() == b'earlier'
    assert capsys.readouterr().err.endswith('model.pt2 was not written.\n')


def test_weights_beside_a_graph_come_along(tmp_path, monkeypatch):
    def write(model, file, *args):
        file.write_bytes(b'graph')
        file.with_name(f'{file.name}.data').write_bytes(b'weights')

    monkeypatch.setattr('mirrorla_mm.engine.export._write', write)
    export(None, tmp_path / 'model.onnx', 'onnx')
    assert (tmp_path / 'model.onnx').read_bytes() == b'graph'
    assert (tmp_path / 'model.onnx.data').read_bytes() == b'weights'


def test_two_stage_detectors_are_refused_in_one_sentence():
    class TwoStage(torch.nn.Module):
        backbone = None

    with pytest.raises(UserError, match='TwoStage cannot be exported'):
        RawOutputs(TwoStage())
