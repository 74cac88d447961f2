"""NaLaFormer's checkpoints (Meng et al., ICML 2026), as its released code writes them."""

from __future__ import annotations

from torch import Tensor

from ..backbones.nalaformer import ARCHS
from .converted import Converted, blames_the_file
from .fitting import fit_built
from .naming import NALAFORMER, rename_keys, require_family
from .ravlt import RENAMES as RAVLT_RENAMES
from .ravlt import ROPE, pyramid_arch, pyramid_classifier

RENAMES = (
    *RAVLT_RENAMES,
    (r'\.attn\.qkvg\.', '.attn.qkv.'),
    (r'\.attn\.out_proj\.', '.attn.proj.'),
    (r'\.attn\.ln\.', '.attn.out_norm.'),
    (r'\.cpe1\.', '.pos.'),
    (r'\.cpe2\.', '.pos2.'),
)


@blames_the_file
def convert_nalaformer(state_dict: dict[str, Tensor], layout: str = 'hybrid') -> Converted:
    """Convert the weights of a NaLaFormer classifier.

    They become ``backbone.``, ``neck.`` and ``head.`` of an mmpretrain classifier.

    Args:
        state_dict (dict): From :func:`~mirrorla_mm.converters.read_state_dict`.
        layout (str): Of the converted model. Defaults to the published one, ``'hybrid'``.

    Returns:
        Converted: The weights and the backbone's config.

    Raises:
        ConversionError: If an entry is missing, has no place or another size, or the file is of
            another model.
        ValueError: If ``layout`` is not valid.
    """
    require_family(state_dict, NALAFORMER)
    backbone = dict(
        type='mirrorla_mm.NaLaFormer',
        arch=pyramid_arch(state_dict, ARCHS),
        layout=layout,
        out_indices=(3,),
        out_norm=False,
    )
    renamed = rename_keys(state_dict, RENAMES, computed=(ROPE,))
    fitted, new = fit_built(lambda: pyramid_classifier(backbone, state_dict), renamed)
    return Converted(fitted, backbone, new)
