"""From checkpoints, published elsewhere or trained here, to models of this package."""

from .backbone import convert_backbone
from .base import (
    ConversionError,
    Converted,
    convert_file,
    fit,
    read_state_dict,
    rename_keys,
    report,
    write_checkpoint,
)
from .nalaformer import convert_nalaformer
from .ravlt import convert_ravlt
from .swin_pvt import convert_swin_pvt

__all__ = [
    'ConversionError',
    'Converted',
    'convert_backbone',
    'convert_file',
    'convert_nalaformer',
    'convert_ravlt',
    'convert_swin_pvt',
    'fit',
    'read_state_dict',
    'rename_keys',
    'report',
    'write_checkpoint',
]
