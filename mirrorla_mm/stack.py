"""The OpenMMLab packages underneath: which of two sets is installed, and whether it works.

OpenMMLab's own packages and the maintained ``onedl`` forks share their import names, so an
environment holds one of the two. This module needs the standard library alone.
"""

from __future__ import annotations

import json
import shlex
import sys
import traceback
import warnings
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

__all__ = [
    'BUILD_COMMAND',
    'STACKS',
    'InstallationError',
    'Stack',
    'find_stack',
    'install_command',
    'mend',
    'pip',
    'report',
    'trouble',
]

IMPORT_NAMES = ('mmengine', 'mmcv', 'mmdet', 'mmseg')
BUILD_COMMAND = 'python -m mirrorla_mm.build_mmcv'


class InstallationError(ImportError):
    """A package is missing or broken; the message is one sentence with the command to run."""


def pip() -> str:
    """Return the command that manages this environment: uv makes environments without pip."""
    return 'pip' if find_spec('pip') else 'uv pip'


def _record() -> dict:
    """Return what pip noted of where this package came from (PEP 610), {} if it noted nothing."""
    try:
        return json.loads(distribution('mirrorla_mm').read_text('direct_url.json') or '{}')
    except PackageNotFoundError:
        return {}


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this package, which no index offers.

    Args:
        extra: Name of an extra in ``pyproject.toml``, for example ``openmmlab``.

    Returns:
        It names the checkout that runs, else where the package was installed from.
    """
    record = _record()
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / 'pyproject.toml').is_file():
        option = '-e ' if record.get('dir_info', {}).get('editable') else ''
        return f'{pip()} install {option}{shlex.quote(f"{checkout}[{extra}]")}'
    source = record.get('url', '')
    if 'vcs_info' in record:
        source = f'{record["vcs_info"]["vcs"]}+{source}@{record["vcs_info"]["commit_id"]}'
    requirement = f'mirrorla_mm[{extra}]' + (f' @ {source}' if source else '')
    return f'{pip()} install {shlex.quote(requirement)}'


@dataclass(frozen=True)
class Stack:
    """One set of packages; ``name`` is also that of the extra which installs it.

    Attributes:
        name: ``openmmlab`` or ``onedl``.
        mmengine, mmcv, mmdet, mmseg: Names of the distributions.
        mmcv_version: The mmcv that is built for it.
        wheels: Page of prebuilt wheels of mmcv, by ``device`` (``cpu``, ``cu128``), torch's minor
            version (``2.10``) and the same without its point (``210``).
        wheels_until: The newest torch with wheels there.
        needs_pkg_resources: Whether its mmengine imports what setuptools 82 dropped.
    """

    name: str
    mmengine: str
    mmcv: str
    mmdet: str
    mmseg: str
    mmcv_version: str
    wheels: str
    wheels_until: tuple[int, int]
    needs_pkg_resources: bool

    @property
    def distributions(self) -> tuple[str, ...]:
        return self.mmengine, self.mmcv, self.mmdet, self.mmseg


OPENMMLAB = Stack(
    name='openmmlab',
    mmengine='mmengine',
    mmcv='mmcv',
    mmdet='mmdet',
    mmseg='mmsegmentation',
    mmcv_version='2.1.0',  # mmdet and mmsegmentation refuse 2.2 and later
    wheels='https://download.openmmlab.com/mmcv/dist/{device}/torch{minor}.0/index.html',
    wheels_until=(2, 1),
    needs_pkg_resources=True,
)
ONEDL = Stack(
    name='onedl',
    mmengine='onedl-mmengine',
    mmcv='onedl-mmcv',
    mmdet='onedl-mmdetection',
    mmseg='onedl-mmsegmentation',
    mmcv_version='2.3.6',
    wheels='https://mmwheels.onedl.ai/{device}-torch{digits}0/simple/onedl-mmcv/index.html',
    wheels_until=(2, 12),
    needs_pkg_resources=False,
)
STACKS = {stack.name: stack for stack in (OPENMMLAB, ONEDL)}


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def find_stack() -> Stack:
    """Return the installed stack.

    Raises:
        InstallationError: If there is none, or packages of both.
    """
    present = {
        name: [part for part in stack.distributions if _installed(part)]
        for name, stack in STACKS.items()
    }
    found = [stack for name, stack in STACKS.items() if present[name]]
    if len(found) == 2:
        raise InstallationError(
            f'OpenMMLab packages ({", ".join(present["openmmlab"])}) and onedl packages '
            f"({', '.join(present['onedl'])}) are installed together and overwrite one another's "
            'files: remove all of them and install one set, with '
            f'{pip()} uninstall -y {" ".join(sum(present.values(), []))} && '
            f'{install_command(OPENMMLAB.name)} && {BUILD_COMMAND}'
        )
    if not found or found[0].mmengine not in present[found[0].name]:
        stack = found[0] if found else OPENMMLAB
        raise InstallationError(
            f'mirrorla_mm offers its operators alone, as {stack.mmengine} is not installed: for '
            f'the models run {install_command(stack.name)} && {BUILD_COMMAND}'
        )
    return found[0]


@cache
def trouble() -> str | None:
    """Say in one sentence what keeps the models from working, and the command that mends it."""
    try:
        stack = find_stack()
    except InstallationError as error:
        return str(error)
    if stack.needs_pkg_resources and find_spec('pkg_resources') is None:
        return (
            f'{stack.mmengine} {version(stack.mmengine)} needs pkg_resources, which setuptools '
            f"dropped in version 82: run {pip()} install 'setuptools<82'"
        )
    try:
        import_module('torch')  # its libraries are those that the ops are linked against
        import_module('mmcv._ext')
    except ImportError as error:
        reason = str(error).partition('\n')[0]
        return (
            f"mirrorla_mm offers its operators alone, as mmcv's compiled ops do not load "
            f'({reason}): for the models run {BUILD_COMMAND}'
        )
    return None


def _warn(sentence: str) -> bool:
    """Warn without the line of source that warnings quote; whether anyone was shown it."""
    shown = False
    show = warnings.showwarning

    def show_sentence(message, category, filename, lineno, file=None, line=None) -> None:
        nonlocal shown
        shown = True
        show(message, category, filename, lineno, file, '')

    warnings.showwarning = show_sentence
    try:
        warnings.warn(sentence, stacklevel=4)
    finally:
        warnings.showwarning = show
    return shown


def report(sentence: str) -> None:
    """Warn of what :func:`trouble` found; a program that it ends says it without a traceback."""
    shown = _warn(sentence)
    shown_otherwise = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        missing = (error.name or '').partition('.')[0] if isinstance(error, ImportError) else ''
        if isinstance(error, InstallationError) or missing in IMPORT_NAMES:
            frames = (frame for frame, _ in traceback.walk_tb(trace))
            importing = all(frame.f_code.co_name == '<module>' for frame in frames)
            if not (shown and importing):  # else the warning stands in the line above
                print(f'error: {sentence}', file=sys.stderr)
        else:
            shown_otherwise(kind, error, trace)

    sys.excepthook = show


def mend() -> None:
    """Let mmengine find mmsegmentation's configs (``mmseg::NAME``) under the name that it has."""
    if find_stack() is ONEDL:
        import_module('mmengine.config.utils').MODULE2PACKAGE['mmseg'] = ONEDL.mmseg
