"""DiT, the host of the paper's Table 5, with any attention; SiT is the same network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..backbones.options import named_arch
from ..engine.errors import UserError
from ..ops.maps import to_tokens
from ..ops.products import Linear
from ..registry import build_attention, register_model

ARCHS = {
    's': dict(embed_dims=384, depth=12, num_heads=6),
    'b': dict(embed_dims=768, depth=12, num_heads=12),
    'l': dict(embed_dims=1024, depth=24, num_heads=16),
    'xl': dict(embed_dims=1152, depth=28, num_heads=16),
}
NORM = dict(elementwise_affine=False, eps=1e-6)
FREQUENCIES = 256


@register_model
class DiT(BaseModule):
    """Diffusion transformer with adaLN-Zero: time and class set shift, scale and gate of a block.

    A fresh model gives exactly 0. Parameters have DiT's names, so that published DiT and SiT
    checkpoints load by ``init_cfg=dict(type='Pretrained', checkpoint=FILE)``.

    Source: Peebles and Xie, "Scalable Diffusion Models with Transformers", ICCV 2023; Ma et al.,
    "SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant
    Transformers", ECCV 2024.

    Args:
        arch (str | dict): ``'s'``, ``'b'``, ``'l'``, ``'xl'``, or a dict with ``embed_dims``,
            ``depth`` and ``num_heads``. Defaults to ``'s'``.
        patch_size (int): Side of a patch p. Defaults to 2.
        input_size (int): Side S of the latent or image, a multiple of p. Defaults to 32.
        in_channels (int): Channels C of the latent or image. Defaults to 4.
        num_classes (int): Classes; one more stands for none of them. Defaults to 1000.
        learn_sigma (bool): Give 2C channels, the second half for a learned variance. Defaults to
            True, also in SiT, which leaves them unused.
        mlp_ratio (float): Width of the feed-forward network over that of a token. Defaults to 4.
        attn_cfg (dict, optional): The attention, anything in :mod:`mirrorla_mm.attention`. Defaults
            to softmax.
        init_cfg (dict, optional): Initialisation, see :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If ``arch`` is unknown, the size no multiple of the patch's, there are no
            classes, or the attention cannot be built.

    Example:
        >>> model = DiT('s', attn_cfg=dict(type='ReLUAttention', reflection={}))
        >>> x, t, y = torch.rand(2, 4, 32, 32), torch.tensor([0, 999]), torch.tensor([1, 2])
        >>> model(x, t, y).shape
        torch.Size([2, 8, 32, 32])
    """

    def __init__(
        self,
        arch: str | dict = 's',
        patch_size: int = 2,
        input_size: int = 32,
        in_channels: int = 4,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        mlp_ratio: float = 4.0,
        attn_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        width, depth, heads = arch_settings(arch)
        if patch_size < 1 or input_size < 1 or input_size % patch_size:
            raise ValueError(
                f'input_size ({input_size}) needs to be a multiple of patch_size ({patch_size}).'
            )
        if num_classes < 1:
            raise ValueError(f'num_classes needs to be 1 at least, got {num_classes}.')
        self.in_shape = (in_channels, input_size, input_size)
        self.num_classes = num_classes
        self.patch_size = patch_size
        side = input_size // patch_size
        self.grid = (side, side)
        self.x_embedder = PatchEmbedder(in_channels, width, patch_size)
        self.t_embedder = TimeEmbedder(width)
        self.y_embedder = ClassEmbedder(num_classes, width)
        self.pos_embed = nn.Parameter(sincos_positions(width, side), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, attn_cfg or dict(type='SoftmaxAttention'), self.grid)
            for _ in range(depth)
        )
        out_channels = in_channels * (2 if learn_sigma else 1)
        self.final_layer = FinalLayer(width, patch_size**2 * out_channels)
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict noise (and its variance) or velocity.

        Args:
            x (Tensor): Noisy latents or images, shape (B, C, S, S).
            t (Tensor): Times, shape (B,): 0 to 999 in DiT, 0 to 1 in SiT.
            y (Tensor): Classes, shape (B,), int64; ``num_classes`` is none of them.

        Returns:
            Tensor: Shape (B, 2C, S, S), or (B, C, S, S) without ``learn_sigma``.

        Raises:
            UserError: If x has another size.
        """
        if tuple(x.shape[1:]) != self.in_shape:
            raise UserError(
                f'This model takes latents or images of {by(self.in_shape)}, got '
                f'{by(x.shape[1:])}: other data need another in_channels or input_size.'
            )
        tokens = self.x_embedder(x) + self.pos_embed
        condition = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            tokens = block(tokens, condition, self.grid)
        return self._unpatchify(self.final_layer(tokens, condition))

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        """(B, N, p p C') to (B, C', S, S)."""
        p = self.patch_size
        patches = tokens.unflatten(2, (p, p, -1)).unflatten(1, self.grid)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def example(self, shape: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        """Arguments of :meth:`forward` for one image.

        Args:
            shape (tuple[int, int]): Height and width in pixels.
            device (torch.device): Where they are made.

        Returns:
            tuple[Tensor, ...]: x, t and y.
        """
        x = torch.empty(1, self.in_shape[0], *shape, device=device)
        y = torch.zeros(1, dtype=torch.long, device=device)
        return x, torch.zeros(1, device=device), y

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        proj = self.x_embedder.proj
        nn.init.xavier_uniform_(proj.weight.data.flatten(1))
        nn.init.zeros_(proj.bias)
        first, _, second = self.t_embedder.mlp
        for layer in (first, second, self.y_embedder.embedding_table):
            nn.init.normal_(layer.weight, std=0.02)
        modulations = [part.adaLN_modulation[1] for part in (*self.blocks, self.final_layer)]
        for layer in (*modulations, self.final_layer.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


class PatchEmbedder(nn.Module):
    """(B, C, S, S) to (B, N, width)."""

    def __init__(self, in_channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(self.proj(x))


class TimeEmbedder(nn.Module):
    """Times (B,) to (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        weight = self.mlp[0].weight
        steps = torch.arange(FREQUENCIES // 2, device=t.device) / (FREQUENCIES // 2)
        # Half precision cannot tell late times apart.
        t = t.to(torch.promote_types(weight.dtype, torch.float32))
        angles = t.unsqueeze(1) * 10000.0**-steps
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=1).to(weight.dtype))


class ClassEmbedder(nn.Module):
    """Classes (B,) to (B, width); the last row is for none of them."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class Block(BaseModule):
    """Attention and feed-forward network, both residual, normalised and modulated.

    Args:
        width (int): Channels of a token.
        num_heads (int): Heads of the attention.
        mlp_ratio (float): Hidden over outer channels of the feed-forward network.
        attn_cfg (dict): The attention.
        grid (tuple[int, int]): Height and width in tokens.
    """

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float, attn_cfg: dict, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, **NORM)
        self.attn = build_attention(attn_cfg, embed_dims=width, num_heads=num_heads, grid_size=grid)
        self.norm2 = nn.LayerNorm(width, **NORM)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, N, width) and their condition (B, width) to the tokens' shape."""
        modulation = self.adaLN_modulation(condition).unsqueeze(1).chunk(6, dim=2)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), grid)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class MLP(nn.Module):
    """Feed-forward network with the tanh form of GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.act = nn.GELU(approximate='tanh')
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class FinalLayer(nn.Module):
    """Tokens (B, N, width) to patches (B, N, out)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, **NORM)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).unsqueeze(1).chunk(2, dim=2)
        return self.linear(modulate(self.norm_final(x), shift, scale))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x (1 + scale) + shift``."""
    return torch.addcmul(shift, x, 1 + scale)


def sincos_positions(width: int, side: int) -> Tensor:
    """Fixed positions of a square grid: half of the channels for the column, half for the row.

    Returns:
        Tensor: Shape (1, side * side, width).
    """
    steps = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * 10000.0**-steps
    table = torch.cat((angles.sin(), angles.cos()), dim=1).float()
    columns, rows = table.expand(side, side, -1), table[:, None].expand(side, side, -1)
    return torch.cat((columns, rows), dim=2).flatten(0, 1).unsqueeze(0)


def arch_settings(arch: str | dict) -> tuple[int, int, int]:
    """Width, depth and heads of a named or custom architecture.

    Raises:
        ValueError: If the name is unknown or the dict has other keys.
    """
    arch = named_arch(arch, ARCHS)
    if set(arch) != set(ARCHS['s']):
        raise ValueError(f'A custom arch has {", ".join(ARCHS["s"])}, got {", ".join(arch)}.')
    return arch['embed_dims'], arch['depth'], arch['num_heads']


def by(shape: Sequence[int]) -> str:
    """A shape for people, such as ``4x32x32``."""
    return 'x'.join(map(str, shape))
