"""The runtime: checkpoints, saving and resuming, mixed precision, parts of the command lines.

Importing it registers classes under the scope ``mirrorla_mm`` and changes nothing else; what a
config or a call switches on is in :mod:`.prepare`.
"""

from ..stack import InstallationError, trouble

if sentence := trouble():
    raise InstallationError(sentence)

from . import (  # noqa: F401
    amp,
    bad_data,
    distributed,
    drawing,
    frozen_norms,
    reproducible,
    resuming,
    saving,
    sharded,
    warm_up,
    workers,
)
from .checkpoint import (
    CheckpointError,
    UnsafeCheckpointError,
    load_checkpoint_file,
    register_safe_loader,
)
from .errors import UserError
from .prepare import prepare_training

__all__ = [
    'CheckpointError',
    'UnsafeCheckpointError',
    'UserError',
    'load_checkpoint_file',
    'prepare_training',
    'register_safe_loader',
]
