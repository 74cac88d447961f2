"""RAVLT, the host of rank-augmented linear attention, and of every attention with its interface."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..ops.maps import to_map, to_tokens
from ..registry import register_model
from .deploy import deploy
from .layers import NORM_EPS, Block, Downsample, Stem
from .options import (
    arch_settings,
    checked_frozen_stages,
    checked_out_indices,
    stage_attentions,
    stage_layout,
)
from .pretrained import has_checkpoint, load_pretrained, pretrained_init_cfg

# Paper, Tab. 6. LayerScale starts at 1 where features are shallow and near 0 where they are deep.
ARCHS = {
    'xt': dict(
        embed_dims=(32, 64, 128, 384),
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        drop_path_rate=0.05,
        layer_scale=1.0,
    ),
    't': dict(
        embed_dims=(64, 128, 256, 512),
        depths=(2, 2, 6, 2),
        num_heads=(1, 2, 4, 8),
        drop_path_rate=0.1,
        layer_scale=1.0,
    ),
    's': dict(
        embed_dims=(64, 128, 320, 512),
        depths=(3, 5, 9, 3),
        num_heads=(1, 2, 5, 8),
        drop_path_rate=0.15,
        layer_scale=1.0,
    ),
    'b': dict(
        embed_dims=(96, 192, 384, 512),
        depths=(4, 6, 12, 6),
        num_heads=(1, 2, 6, 8),
        drop_path_rate=0.4,
        layer_scale=(1.0, 1.0, 1e-6, 1e-6),
    ),
    'l': dict(
        embed_dims=(96, 192, 448, 640),
        depths=(4, 7, 19, 8),
        num_heads=(1, 2, 7, 10),
        drop_path_rate=0.55,
        layer_scale=1e-6,
    ),
}


@register_model
class RAVLT(BaseModule):
    """A four-stage pyramid of convolution and attention blocks (Fan et al., CVPR 2025).

    Args:
        arch (str | dict): ``'xt'``, ``'t'``, ``'s'``, ``'b'``, ``'l'`` (paper, Tab. 6), or a dict
            with ``embed_dims``, ``depths`` and ``num_heads`` of the stages and, optionally,
            ``drop_path_rate``, ``layer_scale`` (a number, or one per stage) and ``mlp_ratio``. In
            a config that inherits a named arch, the dict needs ``_delete_=True``.
        layout (str | Sequence[str]): ``'hybrid'``: linear attention in stages 1 and 2, softmax in
            the others, which is what the paper's FLOPs count (``'paper'`` is the same, for older
            configs); ``'linear'``: linear in all; or ``'linear'`` or ``'softmax'`` per stage.
        attn_cfg (dict | Sequence[dict | None], optional): The attention of the linear stages, or
            one per stage. Defaults to RALA.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages to return, of 0 to 3.
        out_norm (bool): Normalise each output (dense prediction). Defaults to True.
        drop_path_rate (float, optional): Drop-path probability of the last block, rising linearly
            from 0. Defaults to the arch's.
        frozen_stages (int): Freeze the stem (0) and the stages up to this one (1 to 4). Defaults to
            -1: none.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Activation checkpointing: recompute each block in the backward pass.
        pretrained (str, optional): What mmseg passes on from ``model.pretrained``; the same as
            ``init_cfg=dict(type='Pretrained', checkpoint=pretrained)``. Weights from a model zoo,
            which are another architecture's, are left out with a warning.
        init_cfg (dict, optional): Initialisation, such as ``dict(type='Pretrained', ...)``.

    Raises:
        ValueError: If ``arch``, ``layout``, ``attn_cfg``, ``out_indices`` or ``frozen_stages`` is
            not valid.

    Example:
        >>> model = RAVLT('xt', layout='linear')
        >>> [tuple(y.shape) for y in model(torch.rand(1, 3, 64, 64))]
        [(1, 32, 16, 16), (1, 64, 8, 8), (1, 128, 4, 4), (1, 384, 2, 2)]
    """

    archs = ARCHS
    block = Block

    deployed = False
    # What deploy mode computes in: 'bfloat16', or None for the dtype of the weights.
    deploy_dtype: str | None = None

    def __init__(
        self,
        arch: str | dict = 't',
        layout: str | Sequence[str] = 'hybrid',
        attn_cfg: dict | Sequence[dict | None] | None = None,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        out_norm: bool = True,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        pretrained: str | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg or pretrained_init_cfg(pretrained))
        settings = arch_settings(arch, self.archs)
        self.embed_dims = settings['embed_dims']
        self.depths = settings['depths']
        self.layout = stage_layout(layout, len(self.depths))
        self.out_indices = checked_out_indices(out_indices, len(self.depths))
        self.frozen_stages = checked_frozen_stages(frozen_stages, len(self.depths))
        self.norm_eval = norm_eval

        attn_cfgs = stage_attentions(attn_cfg or dict(type='RALA'), self.layout, len(self.depths))
        rate = settings['drop_path_rate'] if drop_path_rate is None else drop_path_rate
        drop_path = iter(torch.linspace(0, rate, sum(self.depths)).tolist())
        self.stem = Stem(in_channels, self.embed_dims[0])
        self.stages = nn.ModuleList()
        self.downsamples = nn.ModuleList()
        for i, (channels, depth) in enumerate(zip(self.embed_dims, self.depths)):
            if i:
                self.downsamples.append(Downsample(self.embed_dims[i - 1], channels))
            self.stages.append(
                nn.ModuleList(
                    self.block(
                        channels,
                        settings['num_heads'][i],
                        attn_cfgs[i] or dict(type='SoftmaxAttention'),
                        mlp_ratio=settings['mlp_ratio'],
                        drop_path=next(drop_path),
                        layer_scale=settings['layer_scale'][i],
                        with_cp=with_cp,
                    )
                    for _ in range(depth)
                )
            )
        self.norms = nn.ModuleDict(
            {
                str(i): nn.LayerNorm(self.embed_dims[i], eps=NORM_EPS)
                for i in self.out_indices
                if out_norm
            }
        )
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extract features.

        Args:
            x (Tensor): Images of any size, shape (B, 3, H, W).

        Returns:
            tuple[Tensor, ...]: The stages ``out_indices``, at strides 4, 8, 16, 32 (rounded up), in
            channels-last memory.
        """
        if self.deploy_dtype is None:
            return self._extract(x)
        with torch.autocast(x.device.type, getattr(torch, self.deploy_dtype)):
            return tuple(y.to(x.dtype) for y in self._extract(x))

    def _extract(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        outputs = []
        for i, stage in enumerate(self.stages):
            if i:
                x = self.downsamples[i - 1](x)
            # One after the other from here, so that nobody keeps the stage's input meanwhile.
            for block in stage:
                x = block(x)
            if i in self.out_indices:
                outputs.append(self._normalise(x, str(i)))
        return tuple(outputs)

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says.

        Raises:
            CheckpointError: If a checkpoint does not fit, see
                :func:`~mirrorla_mm.backbones.pretrained.load_pretrained`.
        """
        if has_checkpoint(self.init_cfg):
            load_pretrained(self)
        else:
            super().init_weights()

    def switch_to_deploy(self, dtype: str | None = None) -> RAVLT:
        """Fold for inference whatever can be folded; outputs stay the same but for rounding.

        Reflections that are the same in all images go into the projections to q and k, LayerScales
        into the layers before them, batch norms into the convolutions and the identity of
        ``x + dwconv(x)`` into the centre tap. Load weights before switching; there is no way back
        to training.

        Args:
            dtype (str, optional): ``'bfloat16'`` to compute in it, see :func:`~.deploy.deploy`.

        Returns:
            RAVLT: Itself, in evaluation mode.
        """
        return deploy(self, dtype)

    def fold_for_inference(self) -> None:
        """Refuse training from now on, see :func:`deploy`."""
        self.deployed = True

    def train(self, mode: bool = True) -> RAVLT:
        """Set the mode; frozen stages and, with ``norm_eval``, batch norms stay in evaluation.

        Raises:
            RuntimeError: If training is asked for in deploy mode.
        """
        if mode and self.deployed:
            raise RuntimeError(
                'The backbone is in deploy mode, with its layers folded, and cannot be trained: '
                'build a new one and load the checkpoint.'
            )
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _normalise(self, x: Tensor, stage: str) -> Tensor:
        if stage not in self.norms:
            return x
        return to_map(self.norms[stage](to_tokens(x)), x.shape[-2:])

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [
            self.stem,
            *self.stages[: self.frozen_stages],
            *self.downsamples[: max(self.frozen_stages - 1, 0)],
        ]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)
