"""From published checkpoints of other repositories to models of this package."""

from .base import (
    ConversionError,
    Converted,
    fit,
    read_state_dict,
    rename_keys,
    report,
    write_checkpoint,
)
from .ravlt import convert_ravlt

__all__ = [
    'ConversionError',
    'Converted',
    'convert_ravlt',
    'fit',
    'read_state_dict',
    'rename_keys',
    'report',
    'write_checkpoint',
]
