"""Any attention in diffusers' ``DiTTransformer2DModel``, for those who have a pretrained one.

diffusers is an optional extra. Its model is not :class:`~mirrorla_mm.diffusion.DiT`: every block
owns its embedders, and an attention is an ``Attention`` with a processor, which has neither a gate
nor the size of the grid. So the whole attention is the processor here: its own projections take the
place of ``to_q``, ``to_k``, ``to_v`` and ``to_out``.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..engine.checkpoint import load_checkpoint_file
from ..engine.checkpoint_fit import check_fit
from ..engine.errors import UserError
from ..registry import build_attention

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel


class Processor(BaseModule):
    """An attention of this package where diffusers looks for a processor.

    Args:
        attn_cfg (dict): The attention.
        embed_dims (int): Channels C.
        num_heads (int): Heads.
        grid (tuple[int, int]): Height and width in tokens that position tables are made for.
    """

    def __init__(
        self, attn_cfg: dict, embed_dims: int, num_heads: int, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.attn = build_attention(
            attn_cfg, embed_dims=embed_dims, num_heads=num_heads, grid_size=grid
        )

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Attend over the tokens of a square grid.

        Args:
            attn (nn.Module): diffusers' attention, which is not used.
            hidden_states (Tensor): Tokens, shape (B, N, C).
            encoder_hidden_states (Tensor, optional): Not supported.
            attention_mask (Tensor, optional): Not supported.
            **kwargs: Not used.

        Returns:
            Tensor: Shape (B, N, C).

        Raises:
            UserError: If the tokens are no square grid, or a mask or another sequence is given.
        """
        if encoder_hidden_states is not None or attention_mask is not None:
            raise UserError('This attention takes neither a mask nor another sequence.')
        side = math.isqrt(hidden_states.shape[1])
        if side**2 != hidden_states.shape[1]:
            raise UserError(f'{hidden_states.shape[1]} tokens are no square grid.')
        return self.attn(hidden_states, (side, side))


def replace_attention(model: DiTTransformer2DModel, attn_cfg: dict) -> DiTTransformer2DModel:
    """Put an attention into every block, in place.

    Projections to q, k and v and the last one are taken over where the attention has them, so that
    ``dict(type='SoftmaxAttention')`` changes nothing; the rest starts as it is initialised, and all
    of it trains.

    Args:
        model (DiTTransformer2DModel): Built or pretrained.
        attn_cfg (dict): The attention, anything in :mod:`mirrorla_mm.attention`.

    Returns:
        DiTTransformer2DModel: The same model. ``save_pretrained`` writes all its weights, but
        ``from_pretrained`` drops those of the attention with no more than a warning: load them by
        :func:`load`.

    Raises:
        UserError: If it was replaced before.
    """
    config = model.config
    side = config.sample_size // config.patch_size
    for block in model.transformer_blocks:
        old = block.attn1
        if isinstance(old.processor, Processor):
            raise UserError('The attention was replaced before.')
        processor = Processor(
            attn_cfg, model.inner_dim, config.num_attention_heads, (side, side)
        ).to(old.to_q.weight)
        _take_over(processor.attn, old)
        old.set_processor(processor)
        # What nothing reads would neither train nor belong into a file.
        for name in ('to_q', 'to_k', 'to_v', 'to_out'):
            setattr(old, name, None)
    return model


@torch.no_grad()
def _take_over(attention: nn.Module, old: nn.Module) -> None:
    source = dict(qkv=(old.to_q, old.to_k, old.to_v), proj=(old.to_out[0],))
    for name, layers in source.items():
        target = getattr(attention, name)
        for key in ('weight', 'bias'):
            parts = [getattr(layer, key) for layer in layers]
            if getattr(target, key) is not None and None not in parts:
                joined = torch.cat(parts)
                getattr(target, key)[: len(joined)].copy_(joined)


def load(model: DiTTransformer2DModel, file: str | os.PathLike) -> DiTTransformer2DModel:
    """Load weights into a model whose attention was replaced; nothing may be missing.

    Args:
        model (DiTTransformer2DModel): From :func:`replace_attention`.
        file (str | os.PathLike): A ``.safetensors`` or ``.pth`` file, or the folder that
            ``save_pretrained`` wrote.

    Returns:
        DiTTransformer2DModel: The same model.

    Raises:
        CheckpointError: If the file cannot be read or is of another model.
        UserError: If a folder holds no weights.
    """
    path = Path(file)
    if path.is_dir():
        path = path / 'diffusion_pytorch_model.safetensors'
        if not path.is_file():
            raise UserError(f'{file} holds no {path.name}.')
    check_fit(model, load_checkpoint_file(path, map_location='cpu'), str(path))
    return model
