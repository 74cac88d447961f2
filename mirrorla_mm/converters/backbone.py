"""From a checkpoint of this project's training to the backbone that another config starts from."""

from __future__ import annotations

import re

from torch import Tensor, nn

from ..registry import MODELS
from .converted import ConversionError, Converted, blames_the_file
from .fitting import fit

PREFIX = 'backbone.'
# Norms of the outputs, which a classifier has of its last stage at most.
OUTPUT_NORMS = r'^backbone\.(norms\.|norm)\d'


@blames_the_file
def convert_backbone(state_dict: dict[str, Tensor], backbone: dict) -> Converted:
    """Take the backbone out of a classifier, detector or segmentor, as another config has it.

    Only the norms of the outputs may differ. A dense config has one for each of its outputs, a
    classifier has none: those that the checkpoint lacks are new, and those of outputs that the
    config does not use are left out.

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
    wanted = model.state_dict()
    unused = [key for key in weights if key not in wanted and re.match(OUTPUT_NORMS, key)]
    used = {key: value for key, value in weights.items() if key not in unused}
    fitted, new = fit(model, used, new=(OUTPUT_NORMS,))
    return Converted(fitted, backbone, new, left_out=tuple(unused))
