"""Deploy mode: fold for inference whatever can be folded."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Model = TypeVar('Model', bound=nn.Module)


def deploy(model: Model) -> Model:
    """Fold every module of a model for good; outputs stay the same but for rounding.

    A module of this package folds itself in ``fold_for_inference``. Those of others that have
    OpenMMLab's ``switch_to_deploy`` are switched. Load weights before; there is no way back to
    training. Doing it twice does nothing more.

    Returns:
        nn.Module: The model itself, in evaluation mode.
    """
    model.eval()
    for module in list(model.modules()):
        if hasattr(module, 'fold_for_inference'):
            module.fold_for_inference()
        elif module is not model and hasattr(module, 'switch_to_deploy'):
            module.switch_to_deploy()
    return model
