"""Between the backbone and a linear classifier."""

from __future__ import annotations

from mmengine.model import BaseModule
from torch import Tensor, nn

from ..registry import register_model


@register_model
class ProjectionNeck(BaseModule):
    """1x1 convolution, BN, SiLU and global average pooling: RAVLT's way to its linear classifier.

    For mmpretrain's ``ImageClassifier``, with ``LinearClsHead`` after it and a backbone with
    ``out_indices=(3,), out_norm=False`` before it. Needs no mmpretrain itself.

    Args:
        in_channels (int): Channels of the last map.
        out_channels (int): Features for the classifier. Defaults to 1024.
        init_cfg (dict, optional): Initialisation.
    """

    def __init__(
        self, in_channels: int, out_channels: int = 1024, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg)
        self.proj = nn.Conv2d(in_channels, out_channels, 1)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.SiLU()

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Pool the last of the maps (B, C, H, W) to features (B, out_channels)."""
        return (self.act(self.norm(self.proj(inputs[-1]))).mean(dim=(2, 3)),)
