import numpy as np
import pytest
import torch

from mirrorla_mm.ops import apply_rope, rope, rope_2d
from mirrorla_mm.ops.rope import Rope
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


@pytest.mark.parametrize('plain', [True, False])
@pytest.mark.parametrize('parts', [1, 2])
def test_rope_of_a_grid_and_of_its_rows(plain, parts):
    hw_shape = (5, 7)
    x = torch.randn(2, 3, 35, 8 * parts, dtype=torch.float64)
    angle = rope_2d(hw_shape, 8, dtype=x.dtype)
    expected = torch.cat([apply_rope(part, angle) for part in x.chunk(parts, -1)], -1)
    turn = Rope(hw_shape, 8, x, plain=plain)
    torch.testing.assert_close(turn(x), expected)
    torch.testing.assert_close(turn[1:4](x[:, :, 7:28]), expected[:, :, 7:28])
    strided = torch.stack((x, x), -1).flatten(-2)[..., ::2]
    torch.testing.assert_close(turn(strided), expected)
    odd = torch.cat((x[..., :1], x), -1)[..., 1:]  # no pair begins at an even place
    torch.testing.assert_close(turn(odd), expected)


def test_pairs_are_copied_only_where_none_begins_at_an_even_place():
    x = torch.randn(2, 3, 8)
    odd = torch.cat((x[..., :1], x), -1)[..., 1:]
    every_other = torch.stack((x, x), -1).flatten(-2)[..., ::2]
    for part, copied in ((x, False), (x[:, 1:, 2:6], False), (odd, True), (every_other, True)):
        pairs = rope.as_complex(part)
        assert torch.equal(torch.view_as_real(pairs).flatten(-2), part)
        assert (pairs.data_ptr() != part.data_ptr()) == copied


def test_tables_made_in_inference_mode_serve_training():
    hw_shape = (3, 11)  # A size of its own, so that the table is made here.
    with torch.inference_mode():
        x = torch.rand(1, 1, 33, 4)
        Rope(hw_shape, 4, x)(x)
    x = torch.rand(1, 1, 33, 4, requires_grad=True)
    Rope(hw_shape, 4, x)(x).sum().backward()
    assert x.grad.isfinite().all()


def test_the_latest_tables_are_kept_and_no_more(monkeypatch):
    monkeypatch.setattr(rope, '_tables', {})
    monkeypatch.setattr(rope, 'LARGEST_CACHE', 3)
    like = torch.zeros(1)
    first = rope.axis_factors(2, 4, like)
    assert rope.axis_factors(2, 4, like) is first
    for length in (3, 4, 5, 6):
        rope.axis_factors(length, 4, like)
        assert len(rope._tables) <= 3
    assert [key[0] for key in rope._tables] == [4, 5, 6]


def test_a_captured_graph_makes_its_own_tables(monkeypatch):
    monkeypatch.setattr(rope, '_tables', {})
    monkeypatch.setattr(rope, 'LARGEST_CACHE', 1)
    like = torch.zeros(1)
    kept = rope.axis_factors(2, 4, like)
    monkeypatch.setattr(rope, 'capturing', lambda device: True)
    in_graph = rope.axis_factors(2, 4, like)
    assert in_graph is not kept and torch.equal(in_graph, kept)
    rope.axis_factors(3, 4, like)  # neither kept nor in the place of another
    assert list(rope._tables.values()) == [kept]


def test_a_run_with_fake_tensors_leaves_no_table_behind():
    from torch._subclasses.fake_tensor import FakeTensorMode

    hw_shape = (2, 13)  # A size of its own, as above.
    with FakeTensorMode():
        x = torch.rand(1, 1, 26, 4)
        Rope(hw_shape, 4, x)(x)
    x = torch.rand(1, 1, 26, 4)
    turned = Rope(hw_shape, 4, x)(x)
    torch.testing.assert_close(turned, apply_rope(x, rope_2d(hw_shape, 4)))
    with FakeTensorMode():
        x = torch.rand(1, 1, 26, 4)
        assert type(Rope(hw_shape, 4, x)(x)) is type(x)
