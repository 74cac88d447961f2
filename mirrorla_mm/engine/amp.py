"""Automatic mixed precision that a config may ask for on any machine."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from ..registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module(name='AmpOptimWrapper', force=True)
def amp_optim_wrapper(
    loss_scale: str | float | dict = 'dynamic',
    dtype: str | None = None,
    use_fsdp: bool = False,
    **kwargs: Any,
) -> OptimWrapper:
    """mmengine's ``AmpOptimWrapper``, or plain float32 training where there is no accelerator.

    mmengine's own stops with an assertion on a CPU, and with it every config that has mixed
    precision in its protocol.

    Args:
        loss_scale (str | float | dict): See :class:`mmengine.optim.AmpOptimWrapper`.
        dtype (str, optional): ``'float16'`` (the default on CUDA) or ``'bfloat16'``.
        use_fsdp (bool): Use the gradient scaler of fully sharded data parallelism.
        **kwargs: Options of :class:`mmengine.optim.OptimWrapper`.

    Returns:
        OptimWrapper: The wrapped optimizer.
    """
    if get_device() == 'cpu':
        print_log(
            'No accelerator for mixed precision here: training in float32.',
            logger='current',
            level=logging.WARNING,
        )
        return OptimWrapper(**kwargs)
    return AmpOptimWrapper(loss_scale=loss_scale, dtype=dtype, use_fsdp=use_fsdp, **kwargs)
