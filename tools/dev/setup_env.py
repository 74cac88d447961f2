"""Set up ``.venv``: torch, the OpenMMLab packages, mmcv's compiled ops and this package.

Run by ``make setup``, with nothing but the standard library. Every step that is done leaves a
stamp keyed on what it depends on, so a second call takes a moment and an interrupted one goes on
where it stopped; the objects of a half compiled mmcv are kept as well.

There is no mmcv wheel for a current torch, so mmcv is compiled here, once. pip knows a wheel that
it built by its source alone: one built for another torch, or without ops, would be taken
silently. Hence no wheel is trusted, wherever it comes from, before its ops have run.

``MMCV_WHEEL=path`` names a wheel to use, ``MAX_JOBS=n`` the number of compiler processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / '.venv'
VENV_PYTHON = VENV / 'bin' / 'python'
STAMPS = VENV / 'setup-stamps'
CACHE = ROOT / '.cache'

PYTHON_VERSION = (3, 11)
REQUIREMENTS = ('runtime', 'triton', 'export', 'tests', 'build')
CONSTRAINTS = 'requirements/tested.txt'

DISK_GB = 5  # measured: 2.5 for .venv with a CPU torch, and the build and pip's downloads beside it
DISK_GB_CUDA = 14  # an estimate: a CUDA torch brings its libraries, downloaded first
COMPILE_CORE_MINUTES = 32  # measured: mmcv 2.1.0, CPU ops: 16 minutes on 2 cores
JOB_MEMORY_GB = 2
FIRST_OBJECTS = 5  # before that the speed says little about the rest
REPORT_SECONDS = 30  # between two progress lines where the output is no terminal


class SetupError(Exception):
    """What is missing and what to do, in one line for the user."""


# --- The machine ---------------------------------------------------------------------------------


def output_of(*command: str | Path) -> str | None:
    """Return what a command printed, or None where it is missing or failed."""
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def python_version(python: str | Path) -> tuple[int, ...] | None:
    text = output_of(python, '-c', 'import sys; print(*sys.version_info[:2])')
    return tuple(int(part) for part in text.split()) if text else None


def find_python(names: tuple[str, ...] = ('python3.11', 'python3', 'python')) -> str:
    """Return a Python of the version that the tested set is pinned for."""
    seen = {}
    for name in (sys.executable, *names):
        seen[name] = python_version(name)
        if seen[name] == PYTHON_VERSION:
            return name
    found = ', '.join(sorted({'{}.{}'.format(*v) for v in seen.values() if v})) or 'none'
    raise SetupError(
        f'Python {version_text()} is needed (found: {found}); install it (on Debian and Ubuntu: '
        f'apt install python{version_text()}-venv python{version_text()}-dev) and run this again.'
    )


def version_text() -> str:
    return '.'.join(map(str, PYTHON_VERSION))


def check_venv_module(python: str) -> None:
    if output_of(python, '-c', 'import venv, ensurepip') is None:
        raise SetupError(
            f'{python} cannot make virtual environments; install its venv module '
            f'(on Debian and Ubuntu: apt install python{version_text()}-venv) and run this again.'
        )


def check_headers(python: str) -> None:
    include = output_of(python, '-c', 'import sysconfig; print(sysconfig.get_path("include"))')
    if not include or not Path(include, 'Python.h').exists():
        raise SetupError(
            f'the C headers of {python} (Python.h) are missing, and mmcv is compiled against them; '
            f'install them (on Debian and Ubuntu: apt install python{version_text()}-dev).'
        )


def compiles(compiler: str) -> bool:
    """Whether ``compiler`` is there and knows C++ and its standard library."""
    try:
        done = subprocess.run(
            [*compiler.split(), '-x', 'c++', '-std=c++17', '-fsyntax-only', '-'],
            input=b'#include <vector>\n',
            capture_output=True,
        )
    except OSError:
        return False
    return done.returncode == 0


def find_compiler() -> str:
    """Return the C++ compiler to use: the user's ``CXX``, else the first that works."""
    asked = os.environ.get('CXX')
    for name in (asked,) if asked else ('c++', 'g++', 'clang++'):
        if compiles(name):
            return name
    raise SetupError(
        f'no working C++ compiler ({asked or "c++, g++ or clang++"}), and mmcv is compiled here; '
        'install one (on Debian and Ubuntu: apt install g++) and run this again.'
    )


def check_disk(need_gb: float) -> None:
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < need_gb:
        raise SetupError(
            f'{free_gb:.1f} GB are free on the disk of {ROOT} and about {need_gb} GB are needed; '
            'make room and run this again.'
        )


def has_gpu() -> bool:
    return bool(output_of('nvidia-smi', '-L'))


def available_memory_gb() -> float:
    match = re.search(r'MemAvailable:\s+(\d+) kB', Path('/proc/meminfo').read_text())
    return int(match.group(1)) / 1e6 if match else JOB_MEMORY_GB


def compile_jobs(cores: int, memory_gb: float) -> int:
    """As many compiler processes as there are cores, if the memory holds them."""
    return max(1, min(cores, int(memory_gb / JOB_MEMORY_GB)))


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
    info = site_file(f'{distribution}-*.dist-info')
    return info.name[len(distribution) + 1 : -len('.dist-info')] if info else None


def file_state(path: Path | None) -> str:
    """Tell a file from a later one in its place, without reading it."""
    if path is None:
        return 'absent'
    stat = path.stat()
    return f'{path.name} {stat.st_size} {stat.st_mtime_ns}'


# --- Running things ------------------------------------------------------------------------------


def say(text: str) -> None:
    print(f'[setup] {text}', flush=True)


def pip(*arguments: str | Path, quiet: bool = False) -> bool:
    """Run the environment's pip with the user's own settings; whether it succeeded."""
    command = [VENV_PYTHON, '-m', 'pip', '--disable-pip-version-check', *arguments]
    kept = subprocess.PIPE if quiet else None
    done = subprocess.run([str(c) for c in command], cwd=ROOT, stdout=kept, stderr=kept)
    return done.returncode == 0


def must_pip(what: str, *arguments: str | Path) -> None:
    if not pip(*arguments):
        if shutil.disk_usage(ROOT).free < 1e9:
            raise SetupError(f'{what} failed: the disk is full; about {DISK_GB} GB are needed.')
        raise SetupError(f'{what} failed: pip says why above; once that is mended, run this again.')


@contextlib.contextmanager
def only_one() -> Iterator[int]:
    """Wait for another set-up of this checkout; yield the lock's file descriptor.

    The compiler inherits the descriptor, so a build whose set-up was killed still holds the lock.
    """
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / 'setup.lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('another set-up of this checkout is running; waiting for it')
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


# --- The environment -----------------------------------------------------------------------------


def make_venv(python: str) -> None:
    present = python_version(VENV_PYTHON)
    if present not in (None, PYTHON_VERSION):
        raise SetupError(
            f'.venv has Python {present[0]}.{present[1]} and {version_text()} is needed; '
            'remove it (rm -rf .venv) and run this again.'
        )
    if present and pip('--version', quiet=True):
        return
    check_venv_module(python)
    say(f'making .venv with {python}')
    if output_of(python, '-m', 'venv', '--clear', VENV) is None:
        raise SetupError(f'"{python} -m venv .venv" failed; run it by hand to see why.')


def install_requirements() -> None:
    files = [ROOT / 'requirements' / f'{name}.txt' for name in REQUIREMENTS]
    stamp = Stamp('requirements', key_of(*files, ROOT / CONSTRAINTS))
    if stamp.is_set():
        return
    say('installing torch and the other requirements (a few minutes, most of it download)')
    listed = [argument for file in files for argument in ('-r', file)]
    must_pip('installing the requirements', 'install', *listed, '-c', ROOT / CONSTRAINTS)
    stamp.set()


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
    must_pip('installing this package', *editable)
    package_stamp().set()


# --- mmcv's compiled ops -------------------------------------------------------------------------

PROBE = """
import sys, torch
from mmcv.ops import nms, roi_align
device = sys.argv[1]
boxes = torch.tensor([[0., 0., 4., 4.], [0., 0., 4., 3.9], [5., 5., 8., 8.]], device=device)
kept = nms(boxes, torch.tensor([.9, .8, .7], device=device), 0.5)[1]
assert kept.tolist() == [0, 2], kept
rois = torch.cat([boxes.new_zeros(3, 1), boxes], 1)
pooled = roi_align(torch.ones(1, 1, 8, 8, device=device), rois, 2)
assert pooled.shape == (3, 1, 2, 2), pooled.shape
"""


def probe_ops(device: str) -> str | None:
    """Run two of mmcv's ops in a process of its own; return what went wrong, None if nothing."""
    done = subprocess.run(
        [str(VENV_PYTHON), '-c', PROBE, device], cwd=CACHE, capture_output=True, text=True
    )
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f'exit status {done.returncode}'


def torch_cuda() -> tuple[str, str]:
    """Return torch's CUDA version, '' where it cannot use the GPU, and the toolkit's folder."""
    query = (
        'import torch; from torch.utils.cpp_extension import CUDA_HOME;'
        'print(torch.version.cuda if torch.cuda.is_available() else "");'
        'print(CUDA_HOME or "")'
    )
    version, _, home = (output_of(VENV_PYTHON, '-c', query) or '').partition('\n')
    return version, home


def nvcc_release(text: str | None) -> str | None:
    match = re.search(r'release (\d+\.\d+)', text or '')
    return match.group(1) if match else None


NO_CUDA_OPS = (
    "mmcv's ops (NMS, RoIAlign, focal loss) are built for the CPU, so a detector runs on the CPU "
    'only (CUDA_VISIBLE_DEVICES= hides the GPU from it); segmentors use the GPU'
)


def choose_device(gpu: bool, torch_version: str, nvcc: str | None) -> tuple[str, str]:
    """Decide for which device mmcv's ops are built.

    Args:
        gpu: Whether the machine has an NVIDIA GPU.
        torch_version: The CUDA version of the installed torch, '' where it cannot use the GPU.
        nvcc: The release of the CUDA compiler, None without one.

    Returns:
        'cuda' or 'cpu', and a line for the user, '' where nothing is to be said.
    """
    if not gpu:
        return 'cpu', ''
    if not torch_version:
        return 'cpu', (
            'there is a GPU, but the torch that your pip settings deliver cannot use it: '
            'everything runs on the CPU'
        )
    if nvcc is None:
        return 'cpu', f'there is a GPU but no CUDA compiler (nvcc): {NO_CUDA_OPS}'
    if nvcc.split('.')[0] != torch_version.split('.')[0]:
        return 'cpu', f'nvcc is {nvcc} and torch wants CUDA {torch_version}: {NO_CUDA_OPS}'
    return 'cuda', f'building mmcv with CUDA {nvcc}'


def device_for_ops() -> tuple[str, str]:
    if not has_gpu():
        return choose_device(False, '', None)
    version, home = torch_cuda()
    nvcc = output_of(Path(home, 'bin', 'nvcc'), '--version') if home else None
    return choose_device(True, version, nvcc_release(nvcc))


def mmcv_version() -> str:
    match = re.search(r'^mmcv==(\S+)$', (ROOT / CONSTRAINTS).read_text(), re.MULTILINE)
    assert match, f'{CONSTRAINTS} pins no mmcv'
    return match.group(1)


def mmcv_stamp() -> Stamp:
    """The stamp of ops that ran with the torch, mmcv and toolkit that are there now."""
    state = file_state(site_file('mmcv/_ext*.so'))
    torch = installed_version('torch')
    return Stamp('mmcv', key_of(torch, mmcv_version(), state, has_gpu(), shutil.which('nvcc')))


def try_wheel(wheel: str | Path, device: str) -> str | None:
    """Install a wheel of mmcv and run its ops; return what went wrong, None if nothing."""
    arguments = ('install', '--quiet', '--no-deps', '--force-reinstall', wheel)
    if not pip(*arguments, quiet=True):
        return 'pip cannot install it'
    return probe_ops(device)


def use_named_wheel(wheel: str, device: str) -> None:
    if not Path(wheel).is_file():
        raise SetupError(f'MMCV_WHEEL={wheel}: there is no such file.')
    trouble = try_wheel(Path(wheel).resolve(), device)
    if trouble:
        raise SetupError(
            f'MMCV_WHEEL={wheel} does not work with torch {installed_version("torch")}: {trouble}; '
            'unset MMCV_WHEEL to have mmcv compiled here.'
        )


def found_wheels(kept: Path) -> list[str]:
    """Wheels that are there already: the last build's, then those in pip's cache."""
    wheels = sorted(str(path) for path in kept.glob('dist/*.whl'))
    listed = output_of(VENV_PYTHON, '-m', 'pip', 'cache', 'list', '--format', 'abspath', 'mmcv')
    name = f'mmcv-{mmcv_version()}-cp{"".join(map(str, PYTHON_VERSION))}-'
    return wheels + [line for line in (listed or '').split('\n') if f'/{name}' in line]


def use_found_wheel(kept: Path, device: str) -> bool:
    """Use the installed mmcv or a wheel that is there already, if its ops run."""
    if installed_version('mmcv') == mmcv_version() and probe_ops(device) is None:
        return True
    for wheel in found_wheels(kept):
        trouble = try_wheel(wheel, device)
        if trouble is None:
            say(f'using the wheel {Path(wheel).name} that is there: its ops run')
            return True
        say(f'passing over {wheel}: {trouble}')
    return False


def mmcv_source(folder: Path) -> Path:
    """Unpack mmcv's source into ``folder``, or find it there from an interrupted build."""
    source = folder / f'mmcv-{mmcv_version()}'
    if source.exists():
        return source
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    download = ('download', '--quiet', '--no-deps', '--no-build-isolation', '--no-binary', 'mmcv')
    must_pip("downloading mmcv's source", *download, '-d', folder, f'mmcv=={mmcv_version()}')
    unpacked = folder / 'unpacked'
    shutil.unpack_archive(next(folder.glob('mmcv-*.tar.gz')), unpacked)
    (unpacked / source.name).rename(source)
    return source


def build_environment(device: str, jobs: int) -> dict[str, str]:
    environment = {**os.environ, 'MMCV_WITH_OPS': '1', 'PYTHONUNBUFFERED': '1'}
    environment['FORCE_CUDA'] = '1' if device == 'cuda' else '0'
    if device == 'cpu':
        environment['CUDA_VISIBLE_DEVICES'] = ''  # mmcv builds for CUDA wherever it sees a GPU
    environment['PATH'] = f'{VENV / "bin"}{os.pathsep}{environment["PATH"]}'  # ninja
    environment['CXX'] = find_compiler()
    environment['MAX_JOBS'] = str(jobs)
    return environment


def ninja_count(line: str) -> tuple[int, int] | None:
    """Read how many of how many objects are compiled from a line of ninja, ``[3/120] c++ ...``."""
    match = re.match(r'\[(\d+)/(\d+)\] ', line)
    return (int(match.group(1)), int(match.group(2))) if match else None


def clock(seconds: float) -> str:
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def progress_text(done: int, total: int, seconds: float) -> str:
    """``compiled 30/120 objects, 4:10 elapsed, about 13 min left``."""
    text = f'compiled {done}/{total} objects, {clock(seconds)} elapsed'
    if FIRST_OBJECTS <= done < total:
        text += f', about {max(1, round(seconds / done * (total - done) / 60))} min left'
    return text


class Progress:
    """A live line on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.start = self.shown = time.monotonic()
        self.live = sys.stdout.isatty()

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self.live and now - self.shown < REPORT_SECONDS and done < total:
            return
        self.shown = now
        text = f'[setup] {progress_text(done, total, now - self.start)}'
        print(f'\r{text}\033[K' if self.live else text, end='' if self.live else '\n', flush=True)

    def end(self) -> None:
        if self.live:
            print(flush=True)


def stop(process: subprocess.Popen) -> None:
    """End a build with all its compilers, which run in a process group of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    process.wait()


def compile_mmcv(source: Path, log: Path, environment: dict[str, str], lock: int) -> bool:
    """Build mmcv's wheel with a progress line, everything else into ``log``; whether it worked."""
    progress = Progress()
    process = subprocess.Popen(
        [str(VENV_PYTHON), 'setup.py', 'bdist_wheel'],
        cwd=source,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        start_new_session=True,
        pass_fds=(lock,),
    )
    try:
        with open(log, 'w') as file:
            for line in process.stdout or ():
                file.write(line)
                count = ninja_count(line)
                if count:
                    progress.show(*count)
        return process.wait() == 0
    except BaseException:
        stop(process)
        raise
    finally:
        progress.end()


def build_failure(log: Path) -> str:
    """Say in one line why the build failed, from its log."""
    text = log.read_text(errors='replace')
    if 'No space left on device' in text:
        return f'the disk is full; about {DISK_GB} GB are needed'
    if 'Killed signal' in text or 'MemoryError' in text:
        return 'the compiler ran out of memory; try MAX_JOBS=1 make setup'
    errors = [line for line in text.splitlines() if re.search(r'\berror\b:', line, re.IGNORECASE)]
    return (errors or ['no error line in its log'])[0].strip()


def already_compiled(source: Path) -> str:
    count = len(list(source.glob('build/**/*.o')))
    return f', less the {count} objects that an earlier run compiled' if count else ''


def build_mmcv(folder: Path, device: str, lock: int) -> None:
    """Compile, install and try mmcv's ops for ``device``."""
    cores = len(os.sched_getaffinity(0))
    jobs = int(os.environ.get('MAX_JOBS') or compile_jobs(cores, available_memory_gb()))
    minutes = max(1, round(COMPILE_CORE_MINUTES / min(jobs, cores)))
    estimate = f'about {minutes} minutes' if device == 'cpu' else f'more than {minutes} minutes'
    environment = build_environment(device, jobs)
    source = mmcv_source(folder)
    log = folder / 'build.log'
    say(f'compiling mmcv {mmcv_version()} for {device}, once; log: {log}')
    say(f'this takes {estimate} here, with {jobs} compiler processes{already_compiled(source)}')
    if not compile_mmcv(source, log, environment, lock):
        raise SetupError(f'compiling mmcv failed: {build_failure(log)} (all of it in {log})')
    trouble = try_wheel(next((source / 'dist').glob('*.whl')), device)
    if trouble:
        raise SetupError(
            f'mmcv was compiled but its ops do not run: {trouble}; '
            f'to compile it anew, remove {folder} and run this again.'
        )


def ensure_device(device: str, lock: int) -> None:
    """Have mmcv with ops for ``device``, from what is there if it works, else by compiling it."""
    named = os.environ.get('MMCV_WHEEL')
    if named:
        use_named_wheel(named, device)
        return
    folder = CACHE / f'mmcv-{mmcv_version()}-torch{installed_version("torch")}-{device}'
    if not use_found_wheel(folder / f'mmcv-{mmcv_version()}', device):
        build_mmcv(folder, device, lock)


def install_mmcv(lock: int) -> None:
    if mmcv_stamp().is_set():
        return
    device, remark = device_for_ops()
    if remark:
        say(remark)
    try:
        ensure_device(device, lock)
    except SetupError as error:
        if device == 'cpu' or os.environ.get('MMCV_WHEEL'):
            raise
        say(f'{error}; going on without: {NO_CUDA_OPS}')
        ensure_device('cpu', lock)
    mmcv_stamp().set()


# --- All of it -----------------------------------------------------------------------------------


def check_machine() -> str:
    """Find what is missing before anything is downloaded; return the Python to use."""
    python = find_python()
    if not Stamp('requirements', '').path.exists():
        check_disk(DISK_GB_CUDA if has_gpu() else DISK_GB)
    if not Stamp('mmcv', '').path.exists() and not os.environ.get('MMCV_WHEEL'):
        check_headers(python)
        find_compiler()
    return python


def set_up() -> None:
    with only_one() as lock:
        python = check_machine()
        make_venv(python)
        install_requirements()
        install_mmcv(lock)
        install_package()


def terminate(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    signal.signal(signal.SIGTERM, terminate)
    start = time.monotonic()
    try:
        set_up()
    except SetupError as error:
        print(f'[setup] {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\n[setup] interrupted; "make setup" goes on where it stopped', file=sys.stderr)
        return 130
    say(f'.venv is ready ({clock(time.monotonic() - start)})')
    return 0


if __name__ == '__main__':
    sys.exit(main())
