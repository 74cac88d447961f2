"""A trained backbone, an image, and what reaches an attention module of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Reflection
from ..attention.base import Attention
from ..engine.configs import preprocessor_of, read_config
from ..engine.errors import UserError
from ..engine.images import read_image
from ..engine.linearise_model import fill_backbone, read_checkpoint
from ..registry import MODELS

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Captured:
    """Inputs of one attention module for one image.

    Attributes:
        module (Attention): The module.
        x (Tensor): Its tokens, shape (1, N, C).
        hw_shape (tuple[int, int]): Their grid.
    """

    module: Attention
    x: Tensor
    hw_shape: tuple[int, int]

    def heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as :meth:`Attention.attend` takes them, each (1, H, N or M, d)."""
        q, k, v = self.module.project(self.x, self.hw_shape)[:3]
        return tuple(map(self.module.split_heads, (q, k, v)))

    def raw_queries_and_keys(self) -> tuple[Tensor, Tensor]:
        """q and k before any reflection, each (1, H, N, d)."""
        q, k = F.linear(self.x, self.module.qkv.weight, self.module.qkv.bias).split(
            self.module.embed_dims, dim=-1
        )[:2]
        return self.module.split_heads(q), self.module.split_heads(k)


def read_shrunk(path: Path, long_side: int | None = None) -> np.ndarray:
    """Read an image as BGR, 8 bits a channel.

    Args:
        path (Path): Any format that OpenCV reads; grey and 16-bit images are converted.
        long_side (int, optional): Shrink to this many pixels on the long side, never enlarge.

    Returns:
        np.ndarray: Shape (H, W, 3), uint8.

    Raises:
        DataError: If the file cannot be read as an image.
    """
    image = read_image(path)
    scale = (long_side or max(image.shape)) / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return image


def normalise(image: np.ndarray, preprocessor: dict | None = None) -> Tensor:
    """Image to input: (H, W, 3) BGR to (1, 3, H, W) as a config's ``data_preprocessor`` does.

    Without one, as ImageNet's do.
    """
    preprocessor = preprocessor or dict(bgr_to_rgb=True, mean=MEAN, std=STD)
    if preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb'):
        image = image[..., ::-1]
    pixels = np.float32(image)
    if preprocessor.get('mean') is not None:
        pixels = (pixels - np.float32(preprocessor['mean'])) / np.float32(preprocessor['std'])
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()


def load_backbone(config: str, checkpoint: str | None = None) -> tuple[nn.Module, dict]:
    """Backbone of a detector's or segmentor's config, in evaluation mode.

    Args:
        config (str): Config file.
        checkpoint (str, optional): Of the whole model or of the backbone alone; random weights
            without it.

    Returns:
        tuple[nn.Module, dict]: The backbone and the config's ``data_preprocessor``.

    Raises:
        CheckpointError: If the checkpoint is not one of this model.
    """
    cfg = read_config(config)
    backbone = MODELS.build({**cfg.model.backbone, '_scope_': cfg.get('default_scope', 'mmengine')})
    if checkpoint:
        fill_backbone(backbone, read_checkpoint(checkpoint))
    return backbone.eval(), preprocessor_of(cfg)


def attention_modules(backbone: nn.Module) -> dict[str, Attention]:
    """All attention modules by their dotted name, in the order of the forward pass."""
    return {n: m for n, m in backbone.named_modules() if isinstance(m, Attention)}


def chosen_module(backbone: nn.Module, layer: str | None) -> Attention:
    """An attention module by name, or the last linear one of the first half without a name.

    Raises:
        UserError: If there is none of that name, naming those there are.
    """
    modules = attention_modules(backbone)
    name = layer or next(iter(modules), None)
    if name not in modules:
        raise UserError(
            f'The backbone has no attention module {name!r}; choose from {", ".join(modules)}.'
        )
    return modules[name]


@torch.no_grad()
def capture(backbone: nn.Module, module: Attention, inputs: Tensor) -> Captured:
    """Run the backbone and keep what ``module`` was given."""
    seen: list[tuple] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args))
    try:
        backbone(inputs)
    finally:
        handle.remove()
    x, hw_shape = seen[0]
    return Captured(module, x, tuple(hw_shape))


def reflection_of(module: Attention, seed: int = 0) -> Reflection:
    """The module's own reflections, or random ones of its shape where it has none."""
    own = getattr(module, 'reflection', None)
    if own is not None:
        return own
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Reflection(module.embed_dims, module.num_heads)
