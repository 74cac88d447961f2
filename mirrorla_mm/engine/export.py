"""Graphs of backbones, segmentors and dense detectors for other runtimes.

Height, width and batch stay free. Images go in normalised, as the data preprocessor leaves them.
Full detectors need box decoding and suppression in the target runtime: what is exported of a
single-stage detector ends at the raw maps of its head.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.onnx import ONNXProgram

from ..backbones.deploy import deploy
from ..ops.backend import use_backend
from .atomic import whole_file
from .errors import UserError

FORMATS = ('onnx', 'torch', 'aoti')
SUFFIXES = {'onnx': '.onnx', 'torch': '.pt2', 'aoti': '.pt2'}
# Batch, height and width are free; the exporter finds out how far.
DYNAMIC = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)


class RawOutputs(nn.Module):
    """From normalised images to tensors: what a graph can hold of an OpenMMLab model.

    - a backbone: its feature maps;
    - a super-resolution model: the enlarged images;
    - a segmentor: logits at the size of the image;
    - a single-stage detector: class scores, then box regressions, of all levels.

    Args:
        model (nn.Module): Backbone, segmentor or single-stage detector.

    Raises:
        UserError: If the model is a two-stage detector or anything else.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        if hasattr(model, 'decode_head'):
            self.read = self._segment
        elif hasattr(model, 'bbox_head'):
            self.read = self._detect
        elif hasattr(model, 'pixel_loss'):
            self.read = model.backbone
        elif hasattr(model, 'backbone'):
            raise UserError(
                f'{type(model).__name__} cannot be exported: its regions depend on the data. '
                'Export its backbone (--backbone-only) or a single-stage detector.'
            )
        else:
            self.read = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Normalised images (B, 3, H, W) to raw outputs."""
        outputs = self.read(x)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _segment(self, x: Tensor) -> tuple[Tensor, ...]:
        head = self.model.decode_head
        logits = head(self.model.extract_feat(x))
        corners = self.model.align_corners
        return (F.interpolate(logits, x.shape[-2:], mode='bilinear', align_corners=corners),)

    def _detect(self, x: Tensor) -> tuple[Tensor, ...]:
        levels = self.model.bbox_head(self.model.extract_feat(x))
        return tuple(level for kind in levels for level in kind)


def prepare(model: nn.Module) -> RawOutputs:
    """Evaluation mode, deploy mode where there is one, no gradients, tensors out."""
    return deploy(RawOutputs(model)).requires_grad_(False)


def export(
    model: RawOutputs,
    file: Path,
    kind: str,
    shape: tuple[int, int] = (128, 160),
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write one graph, whole or not at all.

    Args:
        model (RawOutputs): From :func:`prepare`.
        file (Path): ``.onnx`` or ``.pt2``; its folder is made where missing. Weights of more than
            ONNX can hold lie in a file beside it.
        kind (str): ``'onnx'``, ``'torch'`` (torch.export) or ``'aoti'`` (AOTInductor, compiled for
            this machine).
        shape (tuple[int, int]): Height and width to trace at; others work as well.
        check (Callable, optional): Takes the finished file before it gets its name. What it raises
            leaves an earlier file of that name untouched.

    Raises:
        OSError: If the file cannot be written; an earlier one is then untouched.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / file.name
        _write(model, draft, kind, shape)
        if check is not None:
            check(draft)
        for part in sorted(Path(folder).iterdir(), reverse=True):  # weights before their graph
            with whole_file(file.with_name(part.name)) as partial:
                shutil.copyfile(part, partial)


def _write(model: RawOutputs, file: Path, kind: str, shape: tuple[int, int]) -> None:
    # Sizes of 0 and 1 would be taken for constants, and a square image for two equal sides.
    example = (torch.rand(2, 3, *shape),)
    with use_backend('graph' if kind == 'onnx' else None):
        program = torch.export.export(model, example, dynamic_shapes=DYNAMIC)
    if kind == 'onnx':
        # From these versions on a rotary embedding (23) and GELU (20) are single nodes.
        graph = torch.onnx.export(program, (), dynamo=True, opset_version=23, verbose=False)
        forget_sizes(graph)
        graph.save(file, external_data=False)
    elif kind == 'torch':
        buffer = io.BytesIO()  # On a full disk torch's own writer ends the process.
        torch.export.save(program, buffer)
        with whole_file(file) as partial:
            partial.write_bytes(buffer.getbuffer())
    else:
        torch._inductor.aoti_compile_and_package(program, package_path=str(file))


def forget_sizes(graph: ONNXProgram) -> None:
    """Leave the sizes between nodes to the runtime, but for those of convolutions.

    Of tensors that are known to have one size, onnxruntime lets one take the other's memory, and
    holds that memory in between: 219 instead of 148 to 180 MiB for MirrorLA-T at 800x1280. Of
    convolutions it has to know their sizes, to let them add residuals.
    """
    for node in graph.model.graph:
        for value in node.outputs:
            if node.op_type != 'Conv' and not value.is_graph_output():
                value.shape = None


def run(file: Path, kind: str, x: Tensor) -> list[Tensor]:
    """Outputs of an exported file."""
    if kind == 'onnx':
        from onnxruntime import InferenceSession

        session = InferenceSession(str(file), providers=['CPUExecutionProvider'])
        outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        return [torch.from_numpy(y) for y in outputs]
    if kind == 'torch':
        program: ExportedProgram = torch.export.load(file)
        return list(program.module()(x))
    return list(torch._inductor.aoti_load_package(str(file))(x))


def largest_error(
    model: RawOutputs, file: Path, kind: str, shapes: Sequence[tuple[int, int]], batch: int = 1
) -> float:
    """Largest difference between the file's and the model's outputs, relative to the largest value.

    Args:
        model (RawOutputs): What was exported.
        file (Path): What it was exported to.
        kind (str): See :func:`export`.
        shapes (Sequence[tuple[int, int]]): Sizes to compare at.
        batch (int): Images at a time.

    Returns:
        float: Over all outputs and sizes; NaN if one of them is.
    """
    errors = []
    for shape in shapes:
        x = torch.rand(batch, 3, *shape)
        with torch.no_grad():
            expected = model(x)
        for y, reference in zip(run(file, kind, x), expected, strict=True):
            largest = reference.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            errors.append((y - reference).abs().max() / largest)
    return torch.stack(errors).max().item()  # Python's max would pass over NaN.
