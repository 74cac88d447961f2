"""MirrorLA and other vision linear attentions for OpenMMLab.

Importing the package registers its classes with mmengine. Where the OpenMMLab packages are not
installed, :mod:`mirrorla_mm.ops` still works: it needs torch alone.
"""

from importlib.util import find_spec

from .version import __version__

if find_spec('mmengine') and find_spec('mmcv'):
    from . import attention, backbones, engine, heads  # noqa: F401

    engine.register_safe_loader()

__all__ = ['__version__']
