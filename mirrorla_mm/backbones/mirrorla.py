"""MirrorLA: the RAVLT host with the mirror map."""

from __future__ import annotations

from collections.abc import Sequence

from ..registry import register_model
from .ravlt import RAVLT


@register_model
class MirrorLA(RAVLT):
    """RAVLT with its feature map replaced by learnable reflections and a ReLU.

    Args:
        arch (str | dict): See :class:`RAVLT`.
        layout (str | Sequence[str]): See :class:`RAVLT`.
        reflection (dict, optional): Options of :class:`~mirrorla_mm.attention.Reflection`: ``lam``,
            ``alpha_max``, ``variance_aware`` ("full"), ``cross_head`` ("head") are the switches of
            the paper's Tab. 8; ``shared=False`` unties q and k.
        **kwargs: Options of :class:`RAVLT`, ``attn_cfg`` apart.

    Raises:
        ValueError: If ``attn_cfg`` is given, or an option of :class:`RAVLT` is not valid.

    Example:
        >>> model = MirrorLA('t', layout='linear', reflection=dict(cross_head=False))
    """

    def __init__(
        self,
        arch: str | dict = 't',
        layout: str | Sequence[str] = 'hybrid',
        reflection: dict | None = None,
        **kwargs,
    ) -> None:
        if 'attn_cfg' in kwargs:
            raise ValueError(
                "MirrorLA's attention is MirrorAttention; for another use RAVLT(attn_cfg=...), and "
                'for options of the reflections MirrorLA(reflection=dict(...)).'
            )
        attn_cfg = dict(type='MirrorAttention', reflection=reflection or {})
        super().__init__(arch, layout, attn_cfg=attn_cfg, **kwargs)
