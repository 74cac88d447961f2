"""The parts of the RAVLT host."""

import pytest
import torch
from torch import nn

from mirrorla_mm.backbones.layers import Downsample, Stem
from tests.norms import with_statistics


@pytest.mark.parametrize('cls', [Stem, Downsample])
@pytest.mark.parametrize('grad', [True, False])
def test_a_folded_chain_is_its_layers_one_after_the_other(cls, grad):
    chain = with_statistics(cls(3, 8)).double()
    x = torch.rand(2, 3, 33, 40, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(chain(x), nn.Sequential.forward(chain, x))
