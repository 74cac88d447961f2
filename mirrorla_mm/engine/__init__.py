"""What touches mmengine's runtime: loading and saving checkpoints."""

from . import amp  # noqa: F401
from .checkpoint import (
    CheckpointError,
    UnsafeCheckpointError,
    load_checkpoint_file,
    register_safe_loader,
)

__all__ = [
    'CheckpointError',
    'UnsafeCheckpointError',
    'load_checkpoint_file',
    'register_safe_loader',
]
