"""MirrorLA and other vision linear attentions for OpenMMLab.

Importing the package registers its classes with mmengine. Where the OpenMMLab packages are not
installed, :mod:`mirrorla_mm.ops` still works: it needs torch alone.

The backbones are here too, ``mirrorla_mm.MirrorLA`` and the like; each is imported when it is used.
"""

from importlib import import_module
from importlib.util import find_spec

from .version import __version__

if find_spec('mmengine') and find_spec('mmcv'):
    from . import attention, backbones, engine, heads  # noqa: F401

    engine.register_safe_loader()

BACKBONES = ('LinearPVT', 'LinearSwin', 'MirrorLA', 'NaLaFormer', 'RAVLT')

__all__ = ['__version__']


def __getattr__(name: str) -> type:
    if name in BACKBONES:
        return getattr(import_module('.backbones', __name__), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
