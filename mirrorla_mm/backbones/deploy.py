"""Deploy mode: fold for inference whatever can be folded."""

from __future__ import annotations

import logging
from functools import partial
from typing import TypeVar

from mmengine.logging import print_log
from torch import nn

from ..ops.processor import has_bfloat16
from ..ops.products import FastLinear, Linear

Model = TypeVar('Model', bound=nn.Module)


def deploy(model: Model, dtype: str | None = None) -> Model:
    """Fold every module of a model for good; outputs stay the same but for rounding.

    Linear layers and the products of linear attention run in the way that the processor runs
    fastest, which is measured for each shape when it first comes up. Counters of FLOPs do
    not see the products of packed layers: count before.

    A module of this package folds itself in ``fold_for_inference``. Those of others that have
    OpenMMLab's ``switch_to_deploy`` are switched. Load weights before: the model and its parts
    refuse weights that are not folded from then on. There is no way back to training. Doing it
    twice does nothing more.

    Args:
        model (nn.Module): Any model.
        dtype (str, optional): ``'bfloat16'``: MirrorLA, RAVLT and NaLaFormer compute in it, but for
            statistics, normalisers and softmax, and return float32. Without one of them, or on a
            processor without bfloat16 arithmetic, all stays in float32, with a warning.

    Returns:
        nn.Module: The model itself, in evaluation mode.

    Raises:
        ValueError: If ``dtype`` is another.
    """
    if dtype not in (None, 'bfloat16'):
        raise ValueError(f"deploy() takes dtype='bfloat16' or None (float32), got {dtype!r}.")
    reason = None
    if dtype and not has_bfloat16():
        reason = 'This processor has no bfloat16 arithmetic'
    elif dtype and not any(hasattr(module, 'deploy_dtype') for module in model.modules()):
        reason = 'No backbone here can compute in bfloat16'
    if reason:
        message = f'{reason}: deploy mode stays in float32.'
        print_log(message, logger='current', level=logging.WARNING)
        dtype = None
    model.eval()
    names = {part: set(part.state_dict()) for part in (model, *model.children())}
    for module in list(model.modules()):
        if type(module) in (nn.Linear, Linear):
            module.__class__ = FastLinear
        if dtype and hasattr(module, 'deploy_dtype'):
            module.deploy_dtype = dtype
        if hasattr(module, 'fold_for_inference'):
            module.fold_for_inference()
        elif module is not model and hasattr(module, 'switch_to_deploy'):
            module.switch_to_deploy()
    for part, before in names.items():
        if folded := before - part.state_dict().keys():
            part._register_load_state_dict_pre_hook(partial(_refuse_unfolded, folded))
    return model


def _refuse_unfolded(folded: set[str], state_dict: dict, prefix: str, *_: object) -> None:
    """Refuse a state dict that has what was folded away: the rest of it is not folded either."""
    if any(f'{prefix}{name}' in state_dict for name in folded):
        raise RuntimeError(
            'These weights are not folded but the model is in deploy mode: load them into a new '
            'model before it is deployed.'
        )
