"""Automatic mixed precision that a config may ask for on any machine, in either half precision."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn

from ..registry import OPTIM_WRAPPERS

OUR_AMP = 'mirrorla_mm.AmpOptimWrapper'


def is_amp(kind: Any) -> bool:
    """Whether a config's type of optimizer wrapper is automatic mixed precision.

    Args:
        kind (str | type): mmengine's, by name or by class, or that of this package.
    """
    return kind in ('AmpOptimWrapper', 'mmengine.AmpOptimWrapper', AmpOptimWrapper, OUR_AMP)


@OPTIM_WRAPPERS.register_module(name='AmpOptimWrapper', force=True)
def amp_optim_wrapper(
    loss_scale: str | float | dict = 'dynamic',
    dtype: str | None = None,
    use_fsdp: bool = False,
    **kwargs: Any,
) -> OptimWrapper:
    """mmengine's ``AmpOptimWrapper``, or what there is of it where there is no accelerator.

    mmengine's own stops with an assertion on a CPU, and with it every config that has mixed
    precision in its protocol. Here bfloat16 is bfloat16 there too, and float16 is float32.

    Args:
        loss_scale (str | float | dict): See :class:`mmengine.optim.AmpOptimWrapper`.
        dtype (str, optional): ``'float16'`` (the default on CUDA) or ``'bfloat16'``.
        use_fsdp (bool): Use the gradient scaler of fully sharded data parallelism.
        **kwargs: Options of :class:`mmengine.optim.OptimWrapper`.

    Returns:
        OptimWrapper: The wrapped optimizer.
    """
    if dtype == 'bfloat16':
        let_mmcv_take_bfloat16()
    if get_device() != 'cpu':
        return AmpOptimWrapper(loss_scale=loss_scale, dtype=dtype, use_fsdp=use_fsdp, **kwargs)
    if dtype == 'bfloat16':
        return CPUBfloat16OptimWrapper(**kwargs)
    print_log(
        'No accelerator for mixed precision in float16 here: training in float32.',
        logger='current',
        level=logging.WARNING,
    )
    return OptimWrapper(**kwargs)


class CPUBfloat16OptimWrapper(OptimWrapper):
    """Autocast to bfloat16 on a CPU, whose range needs no loss scaling."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Context of a forward pass."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


@functools.cache
def let_mmcv_take_bfloat16() -> None:
    """Run in float32 what mmcv 2.1 is compiled for in float16 and float32 alone.

    That is RoIAlign, the focal loss and NMS, without which no detector trains in bfloat16. Their
    results stay float32: what follows is under autocast, and a loss is better summed so. mmdet's
    extractors of regions get float32 as a whole: they would round the boxes to bfloat16, which
    beyond 512 pixels is a step of 4.
    """
    from mmcv.ops import RoIAlign
    from mmcv.ops.nms import NMSop
    from mmdet.models.losses import focal_loss
    from mmdet.models.roi_heads.roi_extractors import GenericRoIExtractor, SingleRoIExtractor

    for extractor in (GenericRoIExtractor, SingleRoIExtractor):
        extractor.forward = _in_float32(extractor.forward)
    RoIAlign.forward = _in_float32(RoIAlign.forward)
    NMSop.forward = staticmethod(_in_float32(NMSop.forward))
    focal_loss._sigmoid_focal_loss = _in_float32(focal_loss._sigmoid_focal_loss)


def _in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def cast(*args: Any, **kwargs: Any) -> Tensor:
        return function(*_widened(args), **kwargs)

    return cast


def _widened(value: Any) -> Any:
    """Tensors in bfloat16 as float32, in tuples and lists too; all else as it is."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(_widened, value))
    wide = isinstance(value, Tensor) and value.dtype is torch.bfloat16
    return value.float() if wide else value
