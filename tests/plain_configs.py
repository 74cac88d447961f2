"""Configs written without yapf: to make one pretty costs more than all the rest of a small run."""

from collections.abc import Callable
from importlib import import_module

# onedl's mmengine imports it where it writes, OpenMMLab's where it begins.
PLACES = ('mmengine.config.config', 'yapf.yapflib.yapf_api')


def write_plainly(put: Callable = setattr) -> None:
    """Replace yapf in mmengine; ``put`` may be a monkeypatch's ``setattr``."""
    for place in PLACES:
        put(import_module(place), 'FormatCode', lambda code, **_: (code, True))
