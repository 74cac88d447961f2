"""Layer-wise transfer: new attentions learn what those of a trained host put out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from statistics import mean

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..registry import MODELS, register_model
from .dctlsa import DCTLSA, Block, pad_by_reflection
from .restorer import PREPROCESSOR

__all__ = ['SlotTransfer', 'explained']

TINY = 1e-12  # a variance of nothing


@register_model
class SlotTransfer(BaseModel):
    """A trained host, and another whose attentions learn to do what the first one's do.

    Each new attention gets the map that the old one in its place gets and learns its output, so
    none has to live with the mistakes of another and no image is enlarged. Nothing else of the
    student is run or trained.

    Args:
        teacher (dict): The trained :class:`~.DCTLSA`, with ``init_cfg``.
        backbone (dict): The student: the same host with other attentions. Its windows may be of
            another size, which the sides of the images are multiples of.
        data_preprocessor (dict, optional): Defaults to that of :class:`~.Restorer`.
    """

    def __init__(
        self, teacher: dict, backbone: dict, data_preprocessor: dict | None = None
    ) -> None:
        super().__init__(data_preprocessor or PREPROCESSOR)
        self.teacher = MODELS.build(teacher)
        self.backbone = MODELS.build(backbone)
        self.requires_grad_(False)
        for block in blocks_of(self.backbone):
            block.attn.requires_grad_(True)

    def train(self, mode: bool = True) -> SlotTransfer:
        """Set the mode; the teacher stays in evaluation."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'loss') -> dict:
        """The loss of a batch.

        Args:
            inputs (Tensor): RGB in [0, 1], shape (B, 3, h, w).
            data_samples (list, optional): Not looked at.
            mode (str): ``'loss'``. Defaults to it.

        Returns:
            dict: ``loss``, the mean over the attentions of their squared error, over the variance
            of what they are to put out.

        Raises:
            NotImplementedError: If the mode is another.
            ValueError: If the sides of the images are no multiples of the windows.
        """
        if mode != 'loss':
            raise NotImplementedError('A transfer is trained, not tested.')
        errors = [
            (ours - theirs).square().mean() / theirs.var().clamp(min=TINY)
            for ours, theirs in outputs(self.teacher, self.backbone, inputs)
        ]
        return dict(loss=torch.stack(errors).mean())


@torch.no_grad()
def explained(teacher: DCTLSA, student: DCTLSA, images: Iterable[Tensor]) -> float:
    """How much of what the teacher's attentions tell the tokens of a window apart by is found too.

    What all tokens of a window get alike does not count: one vector for a window takes no
    attention.

    Args:
        teacher (DCTLSA): In evaluation mode.
        student (DCTLSA): In evaluation mode.
        images (Iterable[Tensor]): RGB in [0, 1], shape (1, 3, h, w) each; they are cut to multiples
            of the windows, or padded by reflection to a first one.

    Returns:
        float: Mean over attentions and images of the share of the teacher's variance within windows
        that the student explains: 1 for the teacher itself, 0 for one vector a window, below it for
        what is worse.
    """
    multiple = math.lcm(teacher.window_size, student.window_size)
    shares = []
    for image in images:
        height, width = (max(size // multiple, 1) * multiple for size in image.shape[-2:])
        image = pad_by_reflection(image, multiple)[..., :height, :width]
        pairs = outputs(teacher, student, image)
        for block, (ours, theirs) in zip(blocks_of(teacher), pairs):
            missed, all_there_is = (variance_within(block.cut(x)) for x in (ours - theirs, theirs))
            shares.append(1 - missed / max(all_there_is, TINY))
    return mean(shares)


def outputs(teacher: DCTLSA, student: DCTLSA, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What both attentions of each place put out for the teacher's map.

    Args:
        teacher (DCTLSA): In evaluation mode; it has no gradient.
        student (DCTLSA): With another attention.
        images (Tensor): RGB in [0, 1], shape (B, 3, h, w).

    Yields:
        tuple[Tensor, Tensor]: The student's and the teacher's, shape (B, H, W, C) each.

    Raises:
        ValueError: If the sides of the map are no multiples of the student's windows.
    """
    pairs = attended(teacher, images)
    for old, new, (x, theirs) in zip(blocks_of(teacher), blocks_of(student), pairs):
        if any(size % side for size, side in zip(x.shape[1:3], new.window)):
            raise ValueError(
                f'Maps of {x.shape[1]}x{x.shape[2]} cannot be cut into windows of '
                f'{new.window[0]}: choose crops of a multiple of that.'
            )
        # Both roll the map before they cut it, by half of a window each.
        shift = old.shift - new.shift
        yield new.attend(x.roll((shift, shift), (1, 2))).roll((-shift, -shift), (1, 2)), theirs


@torch.no_grad()
def attended(host: DCTLSA, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The map that each attention of a host gets and the one that it puts out, as they are rolled.

    Args:
        host (DCTLSA): In evaluation mode.
        images (Tensor): RGB in [0, 1], shape (B, 3, h, w).

    Returns:
        list[tuple[Tensor, Tensor]]: Shape (B, H, W, C) each.
    """
    # All layers pad to the same size.
    shape = [-(-size // host.window_size) * host.window_size for size in images.shape[-2:]]
    found: list[tuple[Tensor, Tensor]] = []

    def note(block: Block, attn: nn.Module, inputs: tuple, output: Tensor) -> None:
        found.append((block.join(inputs[0], shape), block.join(output, shape)))

    hooks = [block.attn.register_forward_hook(partial(note, block)) for block in blocks_of(host)]
    try:
        host(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def blocks_of(host: DCTLSA) -> list[Block]:
    """The blocks of a host, in the order of the pass."""
    return [module for module in host.modules() if isinstance(module, Block)]


def variance_within(windows: Tensor) -> float:
    """Mean squared distance of the tokens of windows (windows, N, C) from the mean of theirs."""
    return (windows - windows.mean(1, keepdim=True)).square().mean().item()
