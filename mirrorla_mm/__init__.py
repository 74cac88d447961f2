"""MirrorLA and other vision linear attentions for OpenMMLab.

Importing the package registers its classes with mmengine. Where the OpenMMLab packages are not
installed or do not work, a warning says so and how to mend it, and :mod:`mirrorla_mm.ops` still
works: it needs torch alone.

The backbones are here too, ``mirrorla_mm.MirrorLA`` and the like; each is imported when it is used.
"""

import sys
from importlib import import_module

from . import stack
from .version import __version__

# The command that mends an installation must not stumble over what it is there to mend.
if f'{__name__}.build_mmcv' not in sys.orig_argv:
    if sentence := stack.trouble():
        stack.report(sentence)
    else:
        from . import (  # noqa: F401
            attention,
            backbones,
            diffusion,
            engine,
            heads,
            necks,
            restoration,
        )

        stack.mend()
        engine.register_safe_loader()

BACKBONES = ('LinearPVT', 'LinearSwin', 'MirrorLA', 'NaLaFormer', 'RAVLT')

__all__ = ['__version__']


def __dir__() -> list[str]:
    return sorted({*globals(), *BACKBONES})


def __getattr__(name: str) -> type:
    if name in BACKBONES:
        return getattr(import_module('.backbones', __name__), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
