"""Attention transfer: a linear backbone learns from the softmax backbone that it comes from."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..converters.backbone import OUTPUT_NORMS
from ..registry import MODELS, register_model
from .checkpoint import CheckpointError, load_checkpoint_file, misfit
from .checkpoint_fit import check_fit
from .errors import UserError
from .linearise import layers_of

__all__ = ['AttentionTransfer', 'copy_weights', 'layer_errors']

# As STILL scales it, so that learning rates carry over.
ATTENTION_WEIGHT = 1000
Inputs = tuple[Tensor, ...]
TARGETS = ('attention', 'features')
PREFIX = 'backbone.'


@register_model
class AttentionTransfer(BaseModel):
    """A frozen teacher, and a student that differs from it in the attention of some stages.

    - ``'attention'``: each new layer gets the input of the teacher's layer and learns its output,
      head by head, before the projection; only parameters that the teacher lacks are trained. So
      layers learn independently of one another (STILL, arXiv 2602.02180).
    - ``'features'``: the student runs by itself and learns the teacher's output maps; all
      parameters of the new layers are trained.

    Both run in evaluation mode: batch norms keep their statistics and nothing is dropped. Only
    images are used, no labels; those of a diffusion model are noised as in its training.

    Args:
        teacher (dict): Its backbone.
        student (dict): The student's.
        checkpoints (Sequence[str]): Files of teacher and student, backbones under ``backbone.``.
        stages (Sequence[int]): Stages with new attention, from 1.
        target (str): ``'attention'`` or ``'features'``.
        process (dict, optional): That of a diffusion model.
        data_preprocessor (dict, optional): That of the config.
        class_dropout (float): Share of a diffusion model's samples that train without their class.

    Raises:
        ValueError: If ``target`` is not valid.
    """

    def __init__(
        self,
        teacher: dict,
        student: dict,
        checkpoints: Sequence[str],
        stages: Sequence[int],
        target: str = 'attention',
        process: dict | None = None,
        data_preprocessor: dict | None = None,
        class_dropout: float = 0.0,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        if target not in TARGETS:
            raise ValueError(f"target needs to be one of {', '.join(TARGETS)}, got '{target}'.")
        self.checkpoints = tuple(checkpoints)
        self.target = target
        self.class_dropout = class_dropout
        self.process = build_process(process)
        self.teacher, self.student = (build_backbone(cfg) for cfg in (teacher, student))
        new = copy_weights(self.teacher, self.student)
        self.layers = layers_of(self.student, stages)
        self.requires_grad_(False)
        for name, parameter in self.student.named_parameters():
            in_new_layer = any(name.startswith(f'{layer}.') for layer in self.layers)
            parameter.requires_grad_(in_new_layer and (target == 'features' or name in new))

    def init_weights(self) -> None:
        """Load teacher and student.

        Raises:
            CheckpointError: If a file does not fit.
        """
        for backbone, file in zip((self.teacher, self.student), self.checkpoints):
            fill_backbone(backbone, read_checkpoint(file))

    def train(self, mode: bool = True) -> AttentionTransfer:
        """Set the mode; the backbones stay in evaluation."""
        super().train(mode)
        self.teacher.eval()
        self.student.eval()
        return self

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'loss') -> dict:
        """The loss of a batch.

        Args:
            inputs (Tensor): Preprocessed images or latents, shape (B, C, H, W).
            data_samples (list, optional): Of a diffusion model, with ``gt_label``.
            mode (str): ``'loss'``. Defaults to it.

        Returns:
            dict: ``loss``, a scalar.

        Raises:
            NotImplementedError: If the mode is another.
        """
        if mode != 'loss':
            raise NotImplementedError('An attention transfer is trained, not tested.')
        loss = self.attention_loss if self.target == 'attention' else self.feature_loss
        given = backbone_inputs(self.process, inputs, data_samples)
        if self.process is not None and self.training:
            *given, labels = given
            nameless = torch.rand(labels.shape, device=labels.device) < self.class_dropout
            given = (*given, labels.masked_fill(nameless, self.teacher.num_classes))
        return dict(loss=loss(given))

    def attention_loss(self, inputs: Inputs) -> Tensor:
        """1000 times the mean over the layers of the squared error of the heads' outputs."""
        pairs = teacher_forced(self.teacher, self.student, self.layers, inputs)
        errors = [F.mse_loss(ours, theirs) for _, ours, theirs in pairs]
        return ATTENTION_WEIGHT * torch.stack(errors).mean()

    def feature_loss(self, inputs: Inputs) -> Tensor:
        """Mean over the outputs of their squared error, over the teacher's variance."""
        with torch.no_grad():
            targets = as_tuple(self.teacher(*inputs))
        errors = [
            F.mse_loss(ours.float(), theirs.float()) / theirs.float().var().clamp(min=1e-6)
            for ours, theirs in zip(as_tuple(self.student(*inputs)), targets)
        ]
        return torch.stack(errors).mean()


class _Reached(Exception):
    """The backbone's inputs are known."""


def build_process(cfg: dict | None) -> Any:
    """The process of a diffusion model; None for all others."""
    return None if cfg is None else MODELS.build(cfg)


def backbone_inputs(process: Any, images: Tensor, data_samples: Any) -> Inputs:
    """Inputs of a backbone for preprocessed images: these, or noised ones, their times and classes.

    Args:
        process (nn.Module, optional): The process of a diffusion model.
        images (Tensor): Shape (B, C, H, W).
        data_samples (list): Of a diffusion model, with ``gt_label``.

    Returns:
        tuple[Tensor, ...]: The images; or noised ones (B, C, H, W), times (B,) and classes (B,).
    """
    if process is None:
        return (images,)
    labels = torch.tensor([int(sample.gt_label) for sample in data_samples], device=images.device)
    found: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        found.extend((x, t))
        raise _Reached

    with suppress(_Reached):
        process.loss(network, images)
    return (*found, labels)


def as_tuple(outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Outputs of a backbone, of which some have a single one."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def build_backbone(cfg: dict) -> nn.Module:
    """Build a backbone without weights, none of it frozen.

    Args:
        cfg (dict): ``model.backbone`` of a config.

    Raises:
        ValueError: If an option of it is not valid.
    """
    cfg = {key: value for key, value in cfg.items() if key not in ('init_cfg', 'frozen_stages')}
    return MODELS.build(cfg)


class Checkpoint(NamedTuple):
    """Parts of a checkpoint that a linearisation needs.

    Attributes:
        file (str): Its place, for messages.
        weights (dict[str, Tensor]): Those of the backbone have names with ``backbone.``.
        whole (bool): Whether it was saved from a whole model, not from a backbone alone.
        classes (dict): What the model's data set is called and has, empty where it says nothing.
    """

    file: str
    weights: dict[str, Tensor]
    whole: bool
    classes: dict


def read_checkpoint(file: str) -> Checkpoint:
    """Read the weights of a backbone or of a whole model.

    Raises:
        CheckpointError: If the file cannot be read or holds no weights.
    """
    content = load_checkpoint_file(file, 'cpu')
    weights = content.get('state_dict', content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f'The checkpoint {file} holds no weights.')
    meta = content.get('meta')
    classes = meta.get('dataset_meta') if isinstance(meta, dict) else None
    whole = any(key.startswith(PREFIX) for key in weights)
    names = weights if whole else (f'{PREFIX}{key}' for key in weights)
    return Checkpoint(file, dict(zip(names, weights.values())), whole, classes or {})


def fill_backbone(backbone: nn.Module, checkpoint: Checkpoint) -> None:
    """Fill a backbone from a checkpoint of it, or of a whole model.

    Norms of outputs that the checkpoint lacks, as a classifier's does, keep their values.

    Args:
        backbone (nn.Module): The backbone.
        checkpoint (Checkpoint): From :func:`read_checkpoint`.

    Raises:
        CheckpointError: If another parameter or statistic is missing or one has another shape.
    """
    model = nn.ModuleDict(dict(backbone=backbone))
    norms = {key: v for key, v in model.state_dict().items() if re.match(OUTPUT_NORMS, key)}
    check_fit(model, dict(state_dict={**norms, **checkpoint.weights}), checkpoint.file)


def copy_weights(teacher: nn.Module, student: nn.Module) -> list[str]:
    """Copy whatever teacher and student have in common.

    Args:
        teacher (nn.Module): The old backbone.
        student (nn.Module): The new one, which is filled.

    Returns:
        list[str]: Parameters of the student that the teacher lacks, at their initial values.

    Raises:
        UserError: If a weight of both has another shape in the student.
    """
    try:
        missing = student.load_state_dict(teacher.state_dict(), strict=False).missing_keys
    except RuntimeError as error:
        raise UserError(
            f'The new attention cannot start from the old weights, as {misfit(error)}: choose '
            'another with --attn.'
        ) from None
    return [name for name, _ in student.named_parameters() if name in set(missing)]


def layer_errors(
    teacher: nn.Module, student: nn.Module, layers: Sequence[str], inputs: Inputs
) -> dict[str, float]:
    """Squared error of each layer's output, on the teacher's input, over the output's power.

    Args:
        teacher (nn.Module): Backbone in evaluation mode.
        student (nn.Module): Backbone in evaluation mode.
        layers (Sequence[str]): Names of the attention layers, in both.
        inputs (tuple[Tensor, ...]): From :func:`backbone_inputs`.

    Returns:
        dict[str, float]: 0 is a perfect copy; 1 is what an output of zeros has.
    """
    pairs = teacher_forced(teacher, student, layers, inputs)
    return {
        name: ((ours - theirs).square().mean() / theirs.square().mean()).item()
        for name, ours, theirs in pairs
    }


def teacher_forced(
    teacher: nn.Module, student: nn.Module, layers: Sequence[str], inputs: Inputs
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Compare layers one by one, each on the teacher's input.

    Args:
        teacher (nn.Module): Backbone in evaluation mode.
        student (nn.Module): Backbone in evaluation mode.
        layers (Sequence[str]): Names of the attention layers, in both.
        inputs (tuple[Tensor, ...]): From :func:`backbone_inputs`.

    Yields:
        tuple[str, Tensor, Tensor]: Name, and outputs of the heads of student and teacher, (B, N,
        C), float32, before their projection. The student's have a gradient.
    """
    for name, (x, hw_shape) in layer_inputs(teacher, layers, inputs).items():
        theirs = heads_of(teacher.get_submodule(name), x, hw_shape).detach()
        yield name, heads_of(student.get_submodule(name), x, hw_shape), theirs


@torch.no_grad()
def layer_inputs(
    backbone: nn.Module, layers: Sequence[str], inputs: Inputs
) -> dict[str, tuple[Tensor, tuple[int, int]]]:
    """Inputs of each layer when the backbone runs.

    Args:
        backbone (nn.Module): In evaluation mode.
        layers (Sequence[str]): Names of attention layers.
        inputs (tuple[Tensor, ...]): From :func:`backbone_inputs`.

    Returns:
        dict[str, tuple[Tensor, tuple[int, int]]]: Tokens (B, N, C) and their grid, by name.
    """
    found: dict[str, tuple[Tensor, tuple[int, int]]] = {}
    with ExitStack() as stack:
        for name in layers:

            def note(module: nn.Module, args: tuple, kwargs: dict, name: str = name) -> None:
                hw_shape = args[1] if len(args) > 1 else kwargs['hw_shape']
                found[name] = args[0], tuple(hw_shape)

            hook = backbone.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True)
            stack.callback(hook.remove)
        backbone(*inputs)
    return found


def heads_of(layer: nn.Module, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """Run an attention layer without the projection that mixes its heads.

    Args:
        layer (nn.Module): With ``proj`` or ``out_proj``, itself or in a part of it.
        x (Tensor): Tokens, shape (B, N, C).
        hw_shape (tuple[int, int]): Their grid.

    Returns:
        Tensor: Outputs of all heads, shape (B, N, C), float32, with a gradient.
    """
    # PVT's layers add what they get as the identity.
    adds = 'identity' in inspect.signature(layer.forward).parameters
    identity = (torch.zeros_like(x),) if adds else ()
    # Without gradients our layers fuse the projection into other steps.
    with unprojected(layer), torch.enable_grad():
        return layer(x, hw_shape, *identity).float()


@contextmanager
def unprojected(layer: nn.Module) -> Iterator[None]:
    """Let an attention layer put out its heads instead of their projection."""
    projections = [
        (module, name, projection)
        for module in layer.modules()
        for name in ('proj', 'out_proj')
        if isinstance(projection := getattr(module, name, None), nn.Linear)
    ]
    for module, name, projection in projections:
        # torch's multi-head attention reads the weights of its projection.
        setattr(module, name, identity_like(projection) if name == 'out_proj' else nn.Identity())
    try:
        yield
    finally:
        for module, name, projection in projections:
            setattr(module, name, projection)


def identity_like(projection: nn.Linear) -> nn.Linear:
    """A linear layer that changes nothing."""
    identity = copy.deepcopy(projection).requires_grad_(False)
    nn.init.eye_(identity.weight)
    if identity.bias is not None:
        nn.init.zeros_(identity.bias)
    return identity
