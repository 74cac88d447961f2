"""Fixtures that several parts of the suite share."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# Workers share the cores; commands that tests start inherit this.
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

from tests.plain_configs import write_plainly

# Nothing that is imported is garbage: see pytest_collection_finish.
gc.disable()
REPOSITORY = Path(__file__).resolve().parents[1]


def optional_data_root() -> Path:
    """Folder of the optional images and oracles; tests that need them skip where it is absent."""
    return Path(os.environ.get('MIRRORLA_TEST_DATA', REPOSITORY.parent / 'shared')).resolve()


def _existing(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f'optional test data: {path.name} is not under MIRRORLA_TEST_DATA')
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slow tests: one that comes last keeps a single worker busy."""
    items.sort(key=lambda item: item.get_closest_marker('slow') is None)


def pytest_collection_finish() -> None:
    """Leave all that was imported out of garbage collections: each would take half a second.

    mmengine asks for one whenever it makes a data set.
    """
    gc.freeze()
    gc.enable()


@pytest.fixture(scope='session')
def image_root() -> Callable[[str], Path]:
    """Folder of one optional data set: ``coco``, ``ade`` or ``cityscapes``."""
    return lambda name: _existing(optional_data_root() / 'data' / name)


@pytest.fixture(scope='session')
def oracle_file() -> Callable[[str], Path]:
    """A file of an authors' own model, by its name."""
    return lambda name: _existing(optional_data_root() / 'oracles' / name)


@pytest.fixture(scope='session')
def oracle(oracle_file) -> Callable[[str], dict]:
    """Weights, inputs and outputs of an authors' own model: ``state_dict``, ``x``, ``y``."""
    return lambda name: torch.load(
        oracle_file(f'{name}.pth'), map_location='cpu', weights_only=True
    )


@pytest.fixture(autouse=True)
def _fresh_start() -> None:
    """No test depends on what an earlier one drew, or on the default scope that it left behind."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    DefaultScope._instance_dict.clear()


@pytest.fixture
def plain_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write configs without yapf."""
    write_plainly(partial(monkeypatch.setattr, raising=False))


@pytest.fixture
def served(tmp_path) -> Iterator[str]:
    """The address of a web server that gives out the test's folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.fixture
def fresh_compiler() -> None:
    """Forget what was compiled: modules share a ``forward``, whose recompilations are capped."""
    torch.compiler.reset()
