"""Set up ``.venv``: torch, the OpenMMLab packages, mmcv's compiled ops and this package.

Run by ``make setup``, with nothing but the standard library. Every step that is done leaves a
stamp keyed on what it depends on, so a second call takes a moment and an interrupted one goes on
where it stopped. mmcv is built by the command that users have (``mirrorla_mm.build_mmcv``), which
also says what ``MMCV_WHEEL``, ``MAX_JOBS`` and ``FORCE_CUDA`` do.

``STACK=onedl`` takes the maintained forks in place of OpenMMLab's own packages.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]

# The package without what its __init__ imports: there is no torch yet.
package = ModuleType('mirrorla_mm')
package.__path__ = [str(ROOT / 'mirrorla_mm')]
sys.modules['mirrorla_mm'] = package

from mirrorla_mm.build_mmcv import (  # noqa: E402
    Environment,
    SetupError,
    check_disk,
    check_headers,
    find_compiler,
    has_gpu,
    install_mmcv,
    only_one,
    output_of,
    run_command,
    say,
)
from mirrorla_mm.stack import OPENMMLAB, STACKS, Stack  # noqa: E402

VENV = ROOT / '.venv'
ENVIRONMENT = Environment(VENV / 'bin' / 'python')
STAMPS = VENV / 'setup-stamps'

PYTHONS = ((3, 11), (3, 12), (3, 13))  # the tested one first
REQUIREMENTS = ('runtime', 'triton', 'export', 'tests', 'docs')
CONSTRAINTS = ROOT / 'requirements' / 'tested.txt'

DISK_GB = 5  # measured: 2.5 for .venv with a CPU torch, and the build and pip's downloads beside it
DISK_GB_CUDA = 14  # an estimate: a CUDA torch brings its libraries, downloaded first


# --- The Python to use ---------------------------------------------------------------------------


def python_version(python: str | Path) -> tuple[int, ...] | None:
    text = output_of(python, '-c', 'import sys; print(*sys.version_info[:2])')
    return tuple(int(part) for part in text.split()) if text else None


def version_text(version: tuple[int, ...]) -> str:
    return '.'.join(map(str, version))


PYTHONS_TEXT = f'{version_text(PYTHONS[0])} to {version_text(PYTHONS[-1])}'


def find_python() -> str:
    """Return a Python of a version that the tested set holds for."""
    names = [sys.executable, *(f'python{version_text(v)}' for v in PYTHONS), 'python3', 'python']
    seen = {}
    for name in names:
        seen[name] = python_version(name)
        if seen[name] in PYTHONS:
            return name
    found = ', '.join(sorted({version_text(v) for v in seen.values() if v})) or 'none'
    tested = version_text(PYTHONS[0])
    raise SetupError(
        f'Python {PYTHONS_TEXT} is needed (found: {found}): install one (on Debian and Ubuntu: '
        f'apt install python{tested}-venv python{tested}-dev)'
    )


def check_venv_module(python: str) -> None:
    if output_of(python, '-c', 'import venv, ensurepip') is None:
        version = version_text(python_version(python) or PYTHONS[0])
        raise SetupError(
            f'{python} cannot make virtual environments: install its venv module '
            f'(on Debian and Ubuntu: apt install python{version}-venv)'
        )


# --- Stamps --------------------------------------------------------------------------------------


def key_of(*parts: object) -> str:
    """Hash what a step depends on; files count with their content."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else str(part).encode()
        digest.update(len(content).to_bytes(8, 'big') + content)
    return digest.hexdigest()


@dataclass
class Stamp:
    """The record that a step was done with a certain key."""

    name: str
    key: str

    @property
    def path(self) -> Path:
        return STAMPS / self.name

    def is_set(self) -> bool:
        return self.path.exists() and self.path.read_text() == self.key

    def set(self) -> None:
        STAMPS.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.key)


def site_file(pattern: str) -> Path | None:
    """Return the first match in the environment's site-packages."""
    return next(iter(sorted(VENV.glob(f'lib/python*/site-packages/{pattern}'))), None)


def installed_version(distribution: str) -> str | None:
    info = site_file(f'{distribution.replace("-", "_")}-*.dist-info')
    return info.name.split('-')[1].removesuffix('.dist') if info else None


def file_state(path: Path | None) -> str:
    """Tell a file from a later one in its place, without reading it."""
    if path is None:
        return 'absent'
    stat = path.stat()
    return f'{path.name} {stat.st_size} {stat.st_mtime_ns}'


# --- The steps -----------------------------------------------------------------------------------


def chosen_stack() -> Stack:
    """Return the stack named by ``STACK``, else that of ``.venv``, else OpenMMLab's."""
    present = [stack for stack in STACKS.values() if installed_version(stack.mmengine)]
    name = os.environ.get('STACK') or (present[0] if present else OPENMMLAB).name
    if name not in STACKS:
        names = ', '.join(STACKS)
        raise SetupError(f'STACK={name} is none of {names}: choose', 'make setup STACK=onedl')
    if present and present != [STACKS[name]]:
        raise SetupError(
            f'.venv holds the {" and the ".join(stack.name for stack in present)} packages, and an '
            f'environment holds one stack alone: remove it with rm -rf .venv',
            f'make setup STACK={name}',
        )
    return STACKS[name]


def make_venv(python: str) -> None:
    present = python_version(ENVIRONMENT.python)
    if present not in (None, *PYTHONS):
        raise SetupError(
            f'.venv has Python {version_text(present)} and {PYTHONS_TEXT} is needed: '
            'remove it with rm -rf .venv'
        )
    if present and ENVIRONMENT.pip('--version', quiet=True):
        return
    check_venv_module(python)
    say(f'making .venv with {python}')
    if output_of(python, '-m', 'venv', '--clear', VENV) is None:
        raise SetupError(f'making .venv failed: see why with {python} -m venv .venv')


def requirement_files(stack: Stack) -> list[Path]:
    return [ROOT / 'requirements' / f'{name}.txt' for name in (*REQUIREMENTS, stack.name)]


def requirements_stamp(stack: Stack) -> Stamp:
    # setuptools is what people upgrade by hand, and mmengine does not work with every version.
    setuptools = installed_version('setuptools')
    return Stamp('requirements', key_of(setuptools, *requirement_files(stack), CONSTRAINTS))


def install_requirements(stack: Stack) -> None:
    if requirements_stamp(stack).is_set():
        return
    say('installing torch and the other requirements (a few minutes, most of it download)')
    listed = [argument for file in requirement_files(stack) for argument in ('-r', file)]
    ENVIRONMENT.must_pip('installing the requirements', 'install', *listed, '-c', CONSTRAINTS)
    requirements_stamp(stack).set()


def package_stamp() -> Stamp:
    files = [ROOT / name for name in ('setup.py', 'pyproject.toml', 'mirrorla_mm/version.py')]
    files += sorted((ROOT / 'requirements').glob('*.txt'))
    state = file_state(site_file('__editable__.mirrorla_mm*.pth'))
    return Stamp('package', key_of(str(ROOT), state, *files))


def install_package() -> None:
    if package_stamp().is_set():
        return
    say('installing this package (editable)')
    editable = ('install', '--quiet', '--no-build-isolation', '--no-deps', '--editable', ROOT)
    ENVIRONMENT.must_pip('installing this package', *editable)
    package_stamp().set()


def mmcv_stamp(stack: Stack) -> Stamp:
    """The stamp of ops that ran with the torch, mmcv and toolkit that are there now."""
    state = file_state(site_file('mmcv/_ext*.so'))
    torch = installed_version('torch')
    return Stamp('mmcv', key_of(torch, stack, state, has_gpu(), shutil.which('nvcc')))


def install_ops(stack: Stack) -> None:
    if mmcv_stamp(stack).is_set():
        return
    install_mmcv(ENVIRONMENT, stack)
    mmcv_stamp(stack).set()


def check_machine(python: str) -> None:
    """Find what is missing before anything is downloaded."""
    if not Stamp('requirements', '').path.exists():
        check_disk(ROOT, DISK_GB_CUDA if has_gpu() else DISK_GB)
    if not Stamp('mmcv', '').path.exists() and not os.environ.get('MMCV_WHEEL'):
        check_headers(python)
        find_compiler()


def set_up() -> None:
    with only_one(ROOT / '.cache' / 'setup.lock', 'set-up of this checkout'):
        python = find_python()
        stack = chosen_stack()
        check_machine(python)
        make_venv(python)
        install_requirements(stack)
        install_ops(stack)
        install_package()


if __name__ == '__main__':
    stack = os.environ.get('STACK')
    sys.exit(run_command(set_up, f'make setup STACK={stack}' if stack else 'make setup'))
