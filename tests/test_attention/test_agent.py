import pytest
import torch
import torch.nn.functional as F

from mirrorla_mm.attention import AgentAttention
from tests.test_attention.quadratic import (
    DIMS,
    HW,
    assert_same,
    merge,
    projected,
    randomised,
    split,
)


def biases(table, size):
    """Bias of each agent and token: (H, A, N)."""
    coarse = F.interpolate(table.map, size=size, mode='bilinear')
    fine = (table.row + table.column).expand(-1, -1, *size)
    return (coarse + fine).flatten(2)


def by_hand(attention, x):
    q, k, v = projected(attention, x)
    # Agents: means of the queries in the cells of a 2x2 grid, which overlap on odd sizes.
    cells = [(rows, columns) for rows in ((0, 2), (1, 3)) for columns in ((0, 3), (2, 5))]
    grid = q.view(len(q), *HW, DIMS)
    agents = torch.stack([grid[:, a:b, c:d].mean((1, 2)) for (a, b), (c, d) in cells], dim=1)
    q, k, v, agents = map(split, (q, k, v, agents))
    spread = (q @ agents.mT / 8**0.5 + biases(attention.query_bias, HW).mT).softmax(-1)
    gather = (agents @ k.mT / 8**0.5 + biases(attention.key_bias, HW)).softmax(-1)
    out = merge((spread @ gather) @ v)
    maps = merge(v).transpose(1, 2).reshape(len(x), DIMS, *HW)
    lepe = F.conv2d(maps, attention.lepe.weight, attention.lepe.bias, padding=1, groups=DIMS)
    return attention.proj(out + lepe.flatten(2).transpose(1, 2))


def test_is_the_product_of_two_softmax_maps():
    assert_same(randomised(AgentAttention, agents=2, grid_size=HW), by_hand)


@pytest.mark.parametrize('hw', [(1, 1), (9, 4)])
def test_other_grids_and_pools_interpolate_the_biases(hw):
    attention = randomised(AgentAttention, agents=2, pool_size=3, grid_size=HW)
    x = torch.randn(1, hw[0] * hw[1], DIMS, dtype=torch.float64)
    assert attention(x, hw).isfinite().all()
    assert attention.key_bias(hw, 3).shape == (2, 9, hw[0] * hw[1])


def test_constant_biases_stay_what_they_are_on_any_grid():
    attention = randomised(AgentAttention, agents=2, grid_size=HW)
    with torch.no_grad():
        for parameter in attention.key_bias.parameters():
            parameter.fill_(0.5)
    bias = attention.key_bias((6, 7), 5)
    torch.testing.assert_close(bias, torch.full_like(bias, 1.5))
