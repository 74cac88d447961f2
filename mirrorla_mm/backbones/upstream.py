"""Parts shared by the hosts that are built on mmdet's and mmseg's own Swin and PVT."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..attention import Attention
from .pretrained import has_checkpoint, load_pretrained


class UpstreamHost:
    """Mixin of a host: outputs and weights as every model here wants them; first of its bases."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of ``out_indices`` as a tuple, which mmpretrain wants; upstream returns a list."""
        return tuple(super().forward(x))

    def init_weights(self) -> None:
        """Initialise as upstream does, or load the checkpoint of ``init_cfg``.

        Raises:
            CheckpointError: If the checkpoint does not fit.
        """
        if not has_checkpoint(self.init_cfg):
            return super().init_weights()
        load_pretrained(self, self._renamed)


class WindowAttention(BaseModule):
    """In the place of Swin's shifted-window attention: an attention over the map or its windows.

    No token is padded: a map is cut into the fewest windows of at most ``window_size``, as equal as
    possible, and shifted windows are cut half a window earlier instead of being rolled round the
    map. So nothing but the tokens of one neighbourhood enters a sum over tokens.

    Args:
        attention (Attention): The method.
        drop (nn.Module): What the upstream block does to the output: dropout and drop-path.
        window_size (int, optional): Largest side of a window, in tokens. Defaults to the whole map.
        shift (bool): Cut half a window earlier.
    """

    def __init__(
        self,
        attention: Attention,
        drop: nn.Module,
        window_size: int | None = None,
        shift: bool = False,
    ) -> None:
        super().__init__()
        self.w_msa = attention
        self.drop = drop
        self.window_size = window_size
        self.shift = shift
        self._register_load_state_dict_pre_hook(self._adopt_upstream_weights)

    def forward(self, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        heights, widths = (window_lengths(n, self.window_size, self.shift) for n in hw_shape)
        if len(heights) == len(widths) == 1:
            return self.drop(self.w_msa(query, hw_shape))
        rows = query.unflatten(1, tuple(hw_shape)).split(heights, dim=1)
        attended = [
            torch.cat([self._attend(window) for window in row.split(widths, dim=2)], dim=2)
            for row in rows
        ]
        return self.drop(torch.cat(attended, dim=1).flatten(1, 2))

    def _attend(self, window: Tensor) -> Tensor:
        """(B, h, w, C) to the same shape."""
        hw_shape = window.shape[1:3]
        return self.w_msa(window.flatten(1, 2), hw_shape).unflatten(1, hw_shape)

    def _adopt_upstream_weights(self, state_dict: dict, prefix: str, *args) -> None:
        # A linear attention has no table of relative positions.
        for name in ('relative_position_bias_table', 'relative_position_index'):
            state_dict.pop(f'{prefix}w_msa.{name}', None)
        keep_own_gate(state_dict, f'{prefix}w_msa.qkv.', self.w_msa.qkv)


class ReducedAttention(BaseModule):
    """In the place of PVT's spatial-reduction attention: an attention that may reduce k and v.

    Args:
        attention (Attention): The method.
        drop (nn.Module): What the upstream block does to the output: dropout and drop-path.
    """

    # Names of the upstream module's parameters and of ours.
    RENAMED = {
        'attn.in_proj_weight': 'attn.qkv.weight',
        'attn.in_proj_bias': 'attn.qkv.bias',
        'attn.out_proj.weight': 'attn.proj.weight',
        'attn.out_proj.bias': 'attn.proj.bias',
        'sr.weight': 'attn.sr.weight',
        'sr.bias': 'attn.sr.bias',
        'norm.weight': 'attn.sr_norm.weight',
        'norm.bias': 'attn.sr_norm.bias',
    }

    def __init__(self, attention: Attention, drop: nn.Module) -> None:
        super().__init__()
        self.attn = attention
        self.drop = drop
        self._register_load_state_dict_pre_hook(self._adopt_upstream_weights)

    def forward(self, x: Tensor, hw_shape: tuple[int, int], identity: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C), added to ``identity``."""
        return identity + self.drop(self.attn(x, hw_shape))

    def _adopt_upstream_weights(self, state_dict: dict, prefix: str, *args) -> None:
        own = self.state_dict()
        for upstream, name in self.RENAMED.items():
            value = state_dict.pop(prefix + upstream, None)
            # An attention that does not reduce k and v has no use for upstream's reduction.
            if value is not None and name in own:
                state_dict[prefix + name] = value
        keep_own_gate(state_dict, f'{prefix}attn.qkv.', self.attn.qkv)


def keep_own_gate(state_dict: dict, prefix: str, projection: nn.Linear) -> None:
    """Complete upstream weights of q, k and v with the gate's, which upstream has not."""
    for name, own in projection.named_parameters():
        given = state_dict.get(prefix + name)
        if given is not None and 4 * len(given) == 3 * len(own):
            state_dict[prefix + name] = torch.cat((given, own.detach()[len(given) :].to(given)))


def window_lengths(length: int, window_size: int | None, shift: bool) -> list[int]:
    """Cut ``length`` tokens into the fewest windows of at most ``window_size``, nearly equal.

    With ``shift`` the cuts lie half a window earlier, which makes one window more, unless one
    window holds all or each holds one token.
    """
    count = -(-length // window_size) if window_size else 1
    if shift and 1 < count < length:
        inner = [((2 * i + 1) * length + count) // (2 * count) for i in range(count)]
    else:
        inner = [i * length // count for i in range(1, count)]
    cuts = [0, *inner, length]
    return [end - start for start, end in zip(cuts, cuts[1:])]
