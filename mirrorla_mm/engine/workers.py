"""Data loaders' workers that end with the process they work for."""

from __future__ import annotations

import ctypes
import signal
import sys

from mmengine.config import Config

from ..registry import FUNCTIONS

__all__ = ['end_with_parent', 'end_workers_with_run']

PR_SET_PDEATHSIG = 1


@FUNCTIONS.register_module(force=True)
def end_with_parent(worker_id: int) -> None:
    """Initialise a worker: Linux is to end it when its parent ends, by whatever signal.

    torch's own workers look after their parent too, but one that waits for room in a queue that
    nobody empties any more never does.

    Args:
        worker_id (int): Number of the worker; not used.
    """
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_workers_with_run(cfg: Config) -> None:
    """Let all workers of a config's data loaders begin with :func:`end_with_parent`.

    A ``worker_init_fn`` of the config's own stays. mmengine's would only seed, which torch does.

    Args:
        cfg (Config): Of a run, changed in place.
    """
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if isinstance(loader, dict) and loader.get('num_workers'):
            loader.setdefault('worker_init_fn', {'type': 'mirrorla_mm.end_with_parent'})
            loader.pop('disable_subprocess_warning', None)  # an option of mmengine's
