"""PVT as a host of any attention, built on mmdet's own class."""

from __future__ import annotations

from collections.abc import Sequence

from mmdet.models.backbones.pvt import PVTEncoderLayer, PyramidVisionTransformer
from torch import Tensor, nn

from ..registry import build_attention, register_model
from .stock import ReducedAttention, stage_attentions, with_arch

ARCHS = {
    't': dict(num_layers=(2, 2, 2, 2)),
    's': dict(num_layers=(3, 4, 6, 3)),
    'm': dict(num_layers=(3, 4, 18, 3)),
    'l': dict(num_layers=(3, 8, 27, 3)),
}


@register_model
class LinearPVT(PyramidVisionTransformer):
    """Pyramid Vision Transformer whose attention is replaced in the stages that ask for it.

    It is mmdet's class, takes the same arguments and reads stock checkpoints for all that the two
    have in common, so that in any config ``type='PyramidVisionTransformer'`` can become
    ``type='mirrorla_mm.LinearPVT'``. Patch and position embedding, feed-forward networks, norms
    and the conversion of the original authors' checkpoints are the stock's; only the attention
    module of the linear stages is not, where ``attn_drop_rate`` has no meaning. mmseg has no PVT of
    its own, so this host needs mmdet in segmentation too.

    Args:
        arch (str, optional): ``'t'``, ``'s'``, ``'m'`` or ``'l'`` sets ``num_layers``. Defaults to
            the stock's default, PVT-S.
        attn_cfg (dict | Sequence[dict | None], optional): The attention of the linear stages, or
            one per stage. Defaults to the mirror map.
        layout (str | Sequence[str]): See :class:`~mirrorla_mm.backbones.LinearSwin`. Defaults to
            linear in all stages, as in FLatten-, Agent- and Pola-PVT.
        linear_sr_ratios (Sequence[int]): Spatial reduction of k and v in the linear stages.
            Defaults to 1, none, as the authors' published models have it; ``sr_ratios`` is that of
            the softmax stages.
        **kwargs: Arguments of the stock class.

    Raises:
        ValueError: If ``arch``, ``attn_cfg`` or ``layout`` is not valid.

    Example:
        >>> model = LinearPVT('t', attn_cfg=dict(type='AgentAttention'))
        >>> [tuple(y.shape) for y in model(torch.rand(1, 3, 64, 64))]
        [(1, 64, 16, 16), (1, 128, 8, 8), (1, 320, 4, 4), (1, 512, 2, 2)]
    """

    def __init__(
        self,
        arch: str | None = None,
        attn_cfg: dict | Sequence[dict | None] | None = None,
        layout: str | Sequence[str] = 'linear',
        linear_sr_ratios: Sequence[int] = (1, 1, 1, 1),
        **kwargs,
    ) -> None:
        super().__init__(**with_arch(arch, ARCHS, kwargs))
        size = kwargs.get('pretrain_img_size', 224)
        grid = (size, size) if isinstance(size, int) else tuple(size)
        cfgs = stage_attentions(attn_cfg, layout, self.num_stages)
        for i, (cfg, sr_ratio) in enumerate(zip(cfgs, linear_sr_ratios)):
            grid = tuple(max(n // self.strides[i], 1) for n in grid)
            for block in self.layers[i][1] if cfg is not None else ():
                if isinstance(block, PVTEncoderLayer):
                    stock = block.attn
                    block.attn = ReducedAttention(
                        build_attention(
                            cfg,
                            embed_dims=stock.embed_dims,
                            num_heads=stock.num_heads,
                            qkv_bias=stock.attn.in_proj_bias is not None,
                            sr_ratio=sr_ratio,
                            grid_size=grid,
                        ),
                        nn.Sequential(stock.proj_drop, stock.dropout_layer),
                    )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of ``out_indices`` as a tuple, which mmpretrain wants; the stock returns a list."""
        return tuple(super().forward(x))
