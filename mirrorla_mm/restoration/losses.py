import torch
from torch import Tensor, nn

from ..registry import MODELS

MODELS.register_module(name='L1Loss', module=nn.L1Loss, force=True)


@MODELS.register_module(force=True)
class CharbonnierLoss(nn.Module):
    """``mean(sqrt((x - y)^2 + eps^2))``: L1, smooth where images agree.

    Source: Charbonnier et al., "Two Deterministic Half-Quadratic Regularization Algorithms for
    Computed Imaging", ICIP 1994.

    Args:
        eps (float): Where it turns from quadratic to linear, in units of the images. Defaults to
            1e-3, for images in [0, 1].
    """

    def __init__(self, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, image: Tensor, truth: Tensor) -> Tensor:
        """A scalar of two tensors of one shape."""
        return torch.hypot(image - truth, image.new_tensor(self.eps)).mean()
