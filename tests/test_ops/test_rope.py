import numpy as np
import pytest
import torch

from mirrorla_mm.ops import apply_rope, rope_2d
from tests.test_ops.algorithm1 import rope_rotation


@pytest.mark.parametrize('head_dim', [4, 8, 12])
def test_each_token_turns_by_its_own_rotation_matrix(head_dim):
    hw_shape = (3, 5)
    x = torch.randn(15, head_dim, dtype=torch.float64)
    turned = apply_rope(x, rope_2d(hw_shape, head_dim, dtype=torch.float64))
    rotations = np.stack([rope_rotation(t // 5, t % 5, head_dim) for t in range(15)])
    np.testing.assert_allclose(
        turned.numpy(), np.einsum('tij,tj->ti', rotations, x.numpy()), atol=1e-12
    )


def test_inner_products_depend_on_relative_positions_alone():
    q, k = torch.randn(2, 8, dtype=torch.float64).unbind(0)
    angle = rope_2d((6, 6), 8, dtype=torch.float64).view(6, 6, 4)

    def product(a, b):
        return apply_rope(q[None], angle[a][None]) @ apply_rope(k[None], angle[b][None]).T

    torch.testing.assert_close(product((1, 2), (3, 5)), product((2, 0), (4, 3)))
    assert not torch.allclose(product((1, 2), (3, 5)), product((1, 2), (5, 3)))


def test_head_dimension_must_be_a_multiple_of_four():
    with pytest.raises(ValueError, match='multiple of 4, got 6'):
        rope_2d((2, 2), 6)
