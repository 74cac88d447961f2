import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..ops.maps import resize_map, to_map
from ..ops.precision import at_least_float32, without_autocast
from ..registry import register_attention
from .base import Attention


@register_attention
class AgentAttention(Attention):
    """Two softmax attentions through a few agent tokens.

    ``out = softmax(q a^T / sqrt(d) + b_q) softmax(a k^T / sqrt(d) + b_k) v`` where the agents ``a``
    are the queries, pooled to a small grid (Han et al., "Agent Attention: On the Integration of
    Softmax and Linear Attention", ECCV 2024), plus a 3x3 depth-wise convolution of v,
    whatever the host has. Position enters by the agent biases alone: a host's RoPE is not used.

    It is no :class:`~mirrorla_mm.attention.linear.LinearAttention`: its agents are pooled over the
    whole grid, and both softmaxes run in torch's fused kernel, which needs all tokens at once. So
    it does not go through the tokens strip by strip.

    Complexity O(N A d) per head with A agents. Shapes are those of
    :class:`~mirrorla_mm.attention.base.Attention`.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads H.
        agents (int): Side of the grid of agents that the biases are learned for: A = agents^2.
            The authors take 3, 4, 7, 7 in the four stages. Defaults to 7.
        pool_size (int, optional): Side of the grid that the queries are pooled to; the biases are
            interpolated where it differs. The authors raise it for dense prediction (12, 16, 28, 28
            in PVT; 9, 12, 14, 7 in Swin). Defaults to ``agents``.
        **kwargs: Options of :class:`~mirrorla_mm.attention.base.Attention`.
    """

    brings = dict(lepe_kernel=3, rope=False)

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        agents: int = 7,
        pool_size: int | None = None,
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        self.pool_size = pool_size or agents
        self.query_bias = AgentBias(num_heads, agents, self.grid_size)
        self.key_bias = AgentBias(num_heads, agents, self.kv_shape(self.grid_size))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        query_map = to_map(q.transpose(1, 2).flatten(2), hw_shape)
        agents = F.adaptive_avg_pool2d(query_map, self.pool_size).flatten(2)
        agents = agents.unflatten(1, (self.num_heads, -1)).transpose(-2, -1)
        query_bias = self.query_bias(hw_shape, self.pool_size).transpose(-2, -1)
        key_bias = self.key_bias(self.kv_shape(hw_shape), self.pool_size)
        return agent_attention(q, k, v, agents, query_bias, key_bias)


@without_autocast
def agent_attention(
    q: Tensor, k: Tensor, v: Tensor, agents: Tensor, query_bias: Tensor, key_bias: Tensor
) -> Tensor:
    """The core of :class:`AgentAttention`, in float32 at least.

    Args:
        q (Tensor): Shape (B, H, N, d).
        k (Tensor): Shape (B, H, M, d).
        v (Tensor): Shape (B, H, M, d).
        agents (Tensor): Shape (B, H, A, d).
        query_bias (Tensor): Added to the products of queries and agents, shape (H, N, A).
        key_bias (Tensor): Added to the products of agents and keys, shape (H, A, M).

    Returns:
        Tensor: Shape (B, H, N, d), dtype of ``v``.
    """
    dtype = v.dtype
    q, k, v, agents = map(at_least_float32, (q, k, v, agents))
    # Without the batch's dimension torch would not take its fused kernel.
    query_bias, key_bias = (bias.to(q.dtype).unsqueeze(0) for bias in (query_bias, key_bias))
    gathered = F.scaled_dot_product_attention(agents, k, v, attn_mask=key_bias)
    return F.scaled_dot_product_attention(q, agents, gathered, attn_mask=query_bias).to(dtype)


class AgentBias(BaseModule):
    """Bias of every agent at every token: a coarse map, plus a row and a column table.

    Args:
        num_heads (int): Heads H.
        agents (int): Side of the grid of agents, A = agents^2.
        grid_size (tuple[int, int]): Token grid of the row and column tables.
    """

    def __init__(self, num_heads: int, agents: int, grid_size: tuple[int, int]) -> None:
        super().__init__()
        self.agents = agents
        height, width = grid_size
        self.map, self.row, self.column = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(num_heads, agents**2, *size), std=0.02))
            for size in ((7, 7), (height, 1), (1, width))
        )

    def forward(self, hw_shape: tuple[int, int], pool_size: int) -> Tensor:
        """The biases of a grid of tokens and agents, interpolated: (H, pool_size^2, N)."""
        height, width = hw_shape
        bias = resize_map(self.row, (height, 1)) + resize_map(self.column, (1, width))
        bias += resize_map(self.map, hw_shape)
        by_token = bias.flatten(2).transpose(1, 2).unflatten(2, (self.agents, self.agents))
        return resize_map(by_token, (pool_size, pool_size)).flatten(2).transpose(1, 2)
