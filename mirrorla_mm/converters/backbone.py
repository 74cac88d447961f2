"""From a checkpoint of this project's training to the backbone that another config starts from."""

from __future__ import annotations

from torch import Tensor, nn

from ..registry import MODELS
from .base import ConversionError, Converted, blames_the_file, fit

PREFIX = 'backbone.'
# Norms of the outputs, which a classifier has of its last stage at most.
OUTPUT_NORMS = r'^backbone\.(norms\.|norm)\d'


@blames_the_file
def convert_backbone(state_dict: dict[str, Tensor], backbone: dict) -> Converted:
    """Take the backbone out of a classifier, detector or segmentor, as another config has it.

    A dense config normalises the outputs of its stages, a classifier does not: these norms are new.

    Args:
        state_dict (dict): Of a model trained here, its backbone under ``backbone.``.
        backbone (dict): ``model.backbone`` of the config that shall start from it.

    Returns:
        Converted: The backbone alone, complete.

    Raises:
        ConversionError: If an entry is missing, has no place or another size.
    """
    weights = {key: value for key, value in state_dict.items() if key.startswith(PREFIX)}
    if not weights:
        raise ConversionError(f"There is no backbone in it: no entry starts with '{PREFIX}'.")
    model = nn.ModuleDict(dict(backbone=MODELS.build(dict(backbone, init_cfg=None))))
    fitted, new = fit(model, weights, new=(OUTPUT_NORMS,))
    return Converted(fitted, backbone, new)
