"""The segmentation head of the paper's Tab. 3."""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from torch import Tensor, nn

from ..registry import register_model

NORM_CFG = dict(type='SyncBN', requires_grad=True)
ACT_CFG = dict(type='HSwish')


class MBConv(nn.Sequential):
    """Inverted bottleneck: 1x1 to ``expand_ratio`` times the channels, depth-wise 3x3, 1x1 back."""

    def __init__(self, channels: int, expand_ratio: int, norm_cfg: dict, act_cfg: dict) -> None:
        hidden = channels * expand_ratio
        super().__init__(
            ConvModule(channels, hidden, 1, norm_cfg=norm_cfg, act_cfg=act_cfg),
            ConvModule(
                hidden, hidden, 3, padding=1, groups=hidden, norm_cfg=norm_cfg, act_cfg=act_cfg
            ),
            ConvModule(hidden, channels, 1, norm_cfg=norm_cfg, act_cfg=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@register_model
class EfficientViTHead(BaseDecodeHead):
    """SegHead of EfficientViT (Cai et al., ICCV 2023), which the paper's FLOPs count.

    Each input is projected to ``channels`` and brought to the first one's size by bicubic
    interpolation; their sum goes through residual MBConvs and, optionally, a wide 1x1 layer.

    Args:
        in_channels (Sequence[int]): Channels of the inputs, finest first.
        channels (int): Width of the head: 96 for T and 128 for S in the paper's tables.
        in_index (Sequence[int]): Backbone outputs, finest first. Defaults to strides 8, 16, 32.
        num_blocks (int): MBConvs. Defaults to 3.
        expand_ratio (int): Of each MBConv. Defaults to 4.
        final_expand (int, optional): Width of the layer before the classifier over ``channels``; 4
            for Cityscapes. Defaults to None: no such layer.
        norm_cfg (dict): Defaults to SyncBN.
        act_cfg (dict): Defaults to hard-swish.
        **kwargs: Options of :class:`mmseg.models.decode_heads.decode_head.BaseDecodeHead`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        in_index: Sequence[int] = (1, 2, 3),
        num_blocks: int = 3,
        expand_ratio: int = 4,
        final_expand: int | None = None,
        norm_cfg: dict = NORM_CFG,
        act_cfg: dict = ACT_CFG,
        **kwargs,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            in_index=in_index,
            channels=channels * (final_expand or 1),
            input_transform='multiple_select',
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
            **kwargs,
        )
        self.laterals = nn.ModuleList(
            ConvModule(c, channels, 1, norm_cfg=norm_cfg, act_cfg=None) for c in self.in_channels
        )
        self.blocks = nn.Sequential(
            *(MBConv(channels, expand_ratio, norm_cfg, act_cfg) for _ in range(num_blocks))
        )
        if final_expand:
            self.final = ConvModule(channels, self.channels, 1, norm_cfg=norm_cfg, act_cfg=act_cfg)
        else:
            self.final = nn.Identity()

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits at the finest input's size.

        Args:
            inputs (Sequence[Tensor]): The backbone's outputs.

        Returns:
            Tensor: Shape (B, num_classes, H, W).
        """
        features = [lateral(x) for lateral, x in zip(self.laterals, self._transform_inputs(inputs))]
        size = features[0].shape[2:]
        x = features[0]
        for feature in features[1:]:
            x = x + resize(feature, size=size, mode='bicubic', align_corners=self.align_corners)
        return self.cls_seg(self.final(self.blocks(x)))
