"""PVT as a host of any attention, built on mmdet's own class."""

from __future__ import annotations

from collections.abc import Sequence

from mmdet.models.backbones.pvt import (
    PVTEncoderLayer,
    PyramidVisionTransformer,
    SpatialReductionAttention,
    pvt_convert,
)
from torch import Tensor, nn

from ..registry import build_attention, register_model
from .options import stage_attentions, with_arch
from .upstream import ReducedAttention, UpstreamHost

ARCHS = {
    't': dict(num_layers=(2, 2, 2, 2)),
    's': dict(num_layers=(3, 4, 6, 3)),
    'm': dict(num_layers=(3, 4, 18, 3)),
    'l': dict(num_layers=(3, 8, 27, 3)),
}
AUTHORS_EPS = 1e-5


@register_model
class LinearPVT(UpstreamHost, PyramidVisionTransformer):
    """Pyramid Vision Transformer whose attention is replaced in the stages that ask for it.

    It is mmdet's class and takes the same arguments, so that in any config
    ``type='PyramidVisionTransformer'`` can become ``type='mirrorla_mm.LinearPVT'``. Three things
    differ. The attention of the linear stages is another; ``attn_drop_rate`` has no meaning there.
    The norms of patch embedding and spatial reduction have an epsilon of 1e-5, as in the code of
    PVT's, FLatten's, Agent's and PolaFormer's authors; mmdet's 1e-6 shows on dark and flat images.
    And ``init_cfg`` takes a ``prefix`` and refuses a checkpoint that does not fit, see
    :func:`~mirrorla_mm.backbones.pretrained.load_pretrained`; unless ``convert_weights=False``, it
    also reads files of PVT's authors. mmseg has no PVT, so this host needs mmdet there too.

    Args:
        arch (str | dict, optional): ``'t'``, ``'s'``, ``'m'`` or ``'l'`` sets ``num_layers``, a
            dict what it holds. Defaults to mmdet's default, PVT-S.
        attn_cfg (dict | Sequence[dict | None], optional): The attention of the linear stages, or
            one per stage. Defaults to the mirror map.
        layout (str | Sequence[str]): See :class:`~mirrorla_mm.backbones.LinearSwin`. Defaults to
            linear in all stages, as in FLatten-, Agent- and Pola-PVT.
        linear_sr_ratios (Sequence[int]): Spatial reduction of k and v in the linear stages.
            Defaults to 1, none, as the authors' published models have it; ``sr_ratios`` is that of
            the softmax stages.
        **kwargs: Arguments of mmdet's class. With ``norm_cfg`` all norms are as it says. Stages
            have ``embed_dims * num_heads`` channels: InLine-PVT, with twice the heads, is
            ``embed_dims=32, num_heads=(2, 4, 10, 16)``.

    Raises:
        ValueError: If ``arch``, ``attn_cfg``, ``layout`` or ``linear_sr_ratios`` is not valid.

    Example:
        >>> model = LinearPVT('t', attn_cfg=dict(type='AgentAttention'))
        >>> [tuple(y.shape) for y in model(torch.rand(1, 3, 64, 64))]
        [(1, 64, 16, 16), (1, 128, 8, 8), (1, 320, 4, 4), (1, 512, 2, 2)]
    """

    def __init__(
        self,
        arch: str | dict | None = None,
        attn_cfg: dict | Sequence[dict | None] | None = None,
        layout: str | Sequence[str] = 'linear',
        linear_sr_ratios: Sequence[int] = (1, 1, 1, 1),
        **kwargs,
    ) -> None:
        kwargs = with_arch(arch, ARCHS, kwargs)
        super().__init__(**kwargs)
        if 'norm_cfg' not in kwargs:
            self._take_authors_epsilon()
        size = kwargs.get('pretrain_img_size', 224)
        grid = (size, size) if isinstance(size, int) else tuple(size)
        cfgs = stage_attentions(attn_cfg or dict(type='MirrorAttention'), layout, self.num_stages)
        if len(linear_sr_ratios) < self.num_stages:
            raise ValueError(
                f'linear_sr_ratios needs a value for each of the {self.num_stages} stages, got '
                f'{linear_sr_ratios!r}.'
            )
        for i, (cfg, sr_ratio) in enumerate(zip(cfgs, linear_sr_ratios)):
            grid = tuple(max(n // self.strides[i], 1) for n in grid)
            for block in self.layers[i][1] if cfg is not None else ():
                if isinstance(block, PVTEncoderLayer):
                    upstream = block.attn
                    block.attn = ReducedAttention(
                        build_attention(
                            cfg,
                            embed_dims=upstream.embed_dims,
                            num_heads=upstream.num_heads,
                            qkv_bias=upstream.attn.in_proj_bias is not None,
                            sr_ratio=sr_ratio,
                            grid_size=grid,
                        ),
                        nn.Sequential(upstream.proj_drop, upstream.dropout_layer),
                    )

    def _renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.convert_weights and any(key.startswith('patch_embed1.') for key in weights):
            return pvt_convert(weights)
        return weights

    def _take_authors_epsilon(self) -> None:
        for embedding, *_ in self.layers:
            embedding.norm.eps = AUTHORS_EPS
        for module in self.modules():
            if isinstance(module, SpatialReductionAttention) and module.sr_ratio > 1:
                module.norm.eps = AUTHORS_EPS
