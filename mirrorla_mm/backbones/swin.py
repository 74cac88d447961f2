"""Swin as a host of any attention, built on mmdet's or mmseg's own class."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import build_attention, register_model
from .options import stage_attentions, with_arch
from .upstream import UpstreamHost, WindowAttention

if find_spec('mmdet'):
    from mmdet.models.backbones.swin import ShiftWindowMSA, SwinTransformer, swin_converter
else:
    from mmseg.models.backbones.swin import ShiftWindowMSA, SwinTransformer

    swin_converter = None

ARCHS = {
    't': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    's': dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    'b': dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
}


@register_model
class LinearSwin(UpstreamHost, SwinTransformer):
    """Swin Transformer whose attention is replaced in the stages that ask for it.

    It is mmdet's class (mmseg's, which differs in nothing that matters here, where mmdet is not
    installed), takes the same arguments and keeps its names of parameters, so that in any config
    ``type='SwinTransformer'`` can become ``type='mirrorla_mm.LinearSwin'`` and upstream checkpoints
    load for all that the two have in common. Patch embedding, merging, feed-forward networks,
    norms, freezing and activation checkpointing are upstream's. Not upstream's: the attention of
    linear stages; that windows which hold a whole side of the map are not shifted (upstream shifts
    them, and so differs from the original Swin at 224x224); and the loading of checkpoints, because
    mmdet's fails on a table of relative positions that the model has not. In linear stages
    ``qk_scale`` and ``attn_drop_rate`` have no meaning.

    A linear stage attends over the whole map, as the authors of Agent attention do for dense
    prediction; at 224x224 that is FLatten's window of 56. Softmax stages keep upstream's windows
    and their padding. Agent's dense code shifts windows on maps no larger than one, as upstream
    does, and so differs from ours on such small images.

    Args:
        arch (str | dict, optional): ``'t'``, ``'s'`` or ``'b'`` sets ``embed_dims``, ``depths`` and
            ``num_heads``, a dict what it holds. Defaults to upstream's defaults, Swin-T.
        attn_cfg (dict | Sequence[dict | None], optional): The attention of the linear stages, or
            one per stage. Defaults to the mirror map.
        layout (str | Sequence[str]): ``'hybrid'``: linear in stages 1 and 2, softmax in the others
            (FLatten's "LLSS"); ``'linear'``; or ``'linear'`` or ``'softmax'`` per stage.
        linear_window (int, optional): Windows of at most this side in linear stages too, shifted in
            every other block, see :class:`~mirrorla_mm.backbones.upstream.WindowAttention`.
            Defaults to the whole map.
        **kwargs: Arguments of the upstream class.

    Raises:
        ValueError: If ``arch``, ``attn_cfg`` or ``layout`` is not valid.

    Example:
        >>> model = LinearSwin('t', attn_cfg=dict(type='FLattenAttention'))
        >>> [tuple(y.shape) for y in model(torch.rand(1, 3, 64, 64))]
        [(1, 96, 16, 16), (1, 192, 8, 8), (1, 384, 4, 4), (1, 768, 2, 2)]
    """

    def __init__(
        self,
        arch: str | dict | None = None,
        attn_cfg: dict | Sequence[dict | None] | None = None,
        layout: str | Sequence[str] = 'hybrid',
        linear_window: int | None = None,
        **kwargs,
    ) -> None:
        kwargs = with_arch(arch, ARCHS, kwargs)
        super().__init__(**kwargs)
        size = kwargs.get('pretrain_img_size', 224)
        grid = (size, size) if isinstance(size, int) else tuple(size)
        strides = kwargs.get('strides', (4, 2, 2, 2))
        cfgs = stage_attentions(attn_cfg or dict(type='MirrorAttention'), layout, len(self.stages))
        for stage, cfg, stride in zip(self.stages, cfgs, strides):
            grid = tuple(max(n // stride, 1) for n in grid)
            for i, block in enumerate(stage.blocks):
                if cfg is None:
                    block.attn = SoftmaxWindows(block.attn, grid)
                else:
                    block.attn = linear_windows(block.attn, cfg, grid, linear_window, i % 2 == 1)
        self._freeze_stages()

    def _renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        official = any(key.startswith('layers.') for key in weights)
        if official and getattr(self, 'convert_weights', False):
            weights = swin_converter(weights)
            weights = {key.removeprefix('backbone.'): value for key, value in weights.items()}
        return self._fit_tables(weights)

    def train(self, mode: bool = True) -> LinearSwin:
        """Set the mode, keeping frozen stages in evaluation; unlike upstream it returns itself."""
        super().train(mode)
        return self

    def _fit_tables(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Interpolate tables of relative positions that were trained with another window."""
        own = self.state_dict()
        return {
            key: _resize_table(value, len(own[key]))
            if key in own and key.endswith('relative_position_bias_table')
            else value
            for key, value in state_dict.items()
            if not key.endswith('relative_position_index')
        }


def linear_windows(
    upstream: ShiftWindowMSA,
    cfg: dict,
    grid_size: tuple[int, int],
    window_size: int | None,
    shift: bool,
) -> WindowAttention:
    """The attention ``cfg`` in place of an upstream one, with position tables for its windows."""
    if window_size:
        grid_size = tuple(min(n, window_size) for n in grid_size)
    attention = build_attention(
        cfg,
        embed_dims=upstream.w_msa.embed_dims,
        num_heads=upstream.w_msa.num_heads,
        qkv_bias=upstream.w_msa.qkv.bias is not None,
        grid_size=grid_size,
    )
    return WindowAttention(
        attention, nn.Sequential(upstream.w_msa.proj_drop, upstream.drop), window_size, shift
    )


class SoftmaxWindows(ShiftWindowMSA):
    """Upstream's window attention as the original Swin has it on small maps.

    Windows are no larger than the map of the pre-training size, and are not shifted on a map that
    they hold a whole side of.

    Args:
        upstream (ShiftWindowMSA): The upstream module, whose parts are taken over.
        grid_size (tuple[int, int]): The map of the pre-training size.
    """

    def __init__(self, upstream: ShiftWindowMSA, grid_size: tuple[int, int]) -> None:
        old = upstream.w_msa
        window_size = min(upstream.window_size, *grid_size)
        super().__init__(
            old.embed_dims,
            old.num_heads,
            window_size,
            shift_size=window_size // 2 if upstream.shift_size else 0,
            qkv_bias=old.qkv.bias is not None,
            qk_scale=old.scale,
            attn_drop_rate=old.attn_drop.p,
            proj_drop_rate=old.proj_drop.p,
        )
        self.drop = upstream.drop

    def forward(self, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        if not self.shift_size or min(hw_shape) > self.window_size:
            return super().forward(query, hw_shape)
        height, width = hw_shape
        size = self.window_size
        x = query.unflatten(1, (height, width))
        x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
        windows = self.w_msa(self.window_partition(x).flatten(1, 2)).unflatten(1, (size, size))
        x = self.window_reverse(windows, *x.shape[1:3])[:, :height, :width]
        return self.drop(x.flatten(1, 2))


def _resize_table(table: Tensor, length: int) -> Tensor:
    """(L, H) to (length, H), both of squares."""
    if len(table) == length:
        return table
    old, new = round(len(table) ** 0.5), round(length**0.5)
    maps = table.t().reshape(1, -1, old, old)
    return F.interpolate(maps, size=(new, new), mode='bicubic').flatten(2)[0].t().contiguous()
