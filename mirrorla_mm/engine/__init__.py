"""What touches mmengine's runtime: checkpoints, mixed precision, and what command lines share."""

from . import amp, bad_data, distributed, reproducible, saving  # noqa: F401
from .checkpoint import (
    CheckpointError,
    UnsafeCheckpointError,
    load_checkpoint_file,
    register_safe_loader,
)
from .errors import UserError

__all__ = [
    'CheckpointError',
    'UnsafeCheckpointError',
    'UserError',
    'load_checkpoint_file',
    'register_safe_loader',
]
