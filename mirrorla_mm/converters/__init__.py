"""From checkpoints, published elsewhere or trained here, to models of this package."""

from .backbone import convert_backbone
from .converted import ConversionError, Converted, report
from .dctlsa import convert_dctlsa, official_dctlsa
from .files import blamed_on, convert_file, write_checkpoint
from .fitting import fit
from .nalaformer import convert_nalaformer
from .naming import rename_keys
from .ravlt import convert_ravlt
from .reading import read_state_dict
from .swin_pvt import convert_swin_pvt

__all__ = [
    'ConversionError',
    'Converted',
    'blamed_on',
    'convert_backbone',
    'convert_dctlsa',
    'convert_file',
    'convert_nalaformer',
    'convert_ravlt',
    'convert_swin_pvt',
    'fit',
    'official_dctlsa',
    'read_state_dict',
    'rename_keys',
    'report',
    'write_checkpoint',
]
