"""Build mmcv's compiled ops for the torch that is installed: ``python -m mirrorla_mm.build_mmcv``.

mmcv is compiled against one torch, and for a current torch there is mostly no wheel with ops. This
command takes the first that works of: the installed mmcv, a wheel named by ``MMCV_WHEEL``, one that
an earlier build or pip left, one that the stack's publishers offer, and one compiled here. None is
trusted before its ops have run: pip knows a wheel that it built by its source alone, so that one
built for another torch, or without ops, would be taken silently.

``MMCV_WHEEL=path`` names a wheel to use, ``MAX_JOBS=n`` the number of compiler processes,
``FORCE_CUDA=1`` builds for CUDA on a machine without a GPU, ``CXX`` names the compiler. An
interrupted build goes on where it stopped. The standard library is all that this module needs;
``tools/dev/setup_env.py`` runs it on an environment of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .stack import BUILD_COMMAND, InstallationError, Stack, find_stack

try:
    import fcntl
except ImportError:
    sys.exit('[setup] this runs on Linux and macOS: get a Linux inside Windows with wsl --install')

CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mirrorla_mm'
BUILD_TOOLS = ('ninja', 'packaging', 'setuptools>=77.0.3,<82', 'wheel')

DISK_GB = 2  # measured: the precompiled header, the objects and the tools
# Measured on an AMD EPYC: 77 objects of mmcv 2.1.0; CUDA adds 58, 26 seconds each for a single
# architecture, by one of them.
COMPILE_CORE_MINUTES = {'cpu': 5, 'cuda': 30}
JOB_MEMORY_GB = 2
FIRST_OBJECTS = 5  # before that the speed says little about the rest
REPORT_SECONDS = 30  # between two progress lines where the output is no terminal
CXX20_SINCE = (2, 14)  # torch's headers


class SetupError(Exception):
    """Something is missing or failed: this and its remedy, in one line without a full stop.

    The command line adds what to run after it (:func:`run_command`); ``then`` names another command
    than the one that failed.
    """

    def __init__(self, text: str, then: str | None = None) -> None:
        super().__init__(text)
        self.then = then


# --- Running things ------------------------------------------------------------------------------


def say(text: str) -> None:
    print(f'[setup] {text}', flush=True)


def output_of(*command: str | Path, **options) -> str | None:
    """Return what a command printed, or None where it is missing or failed."""
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=True, **options
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


FIND_PIP = """
import ensurepip, importlib.util, pathlib
if importlib.util.find_spec('pip'):
    print('-mpip')
else:
    print(*pathlib.Path(ensurepip.__file__).parent.glob('_bundled/pip-*.whl'), sep='\\n')
"""


@dataclass(frozen=True)
class Environment:
    """The Python environment that a path to its interpreter names."""

    python: Path

    def ask(self, code: str) -> str | None:
        """Return what its Python prints for ``code``, None where that fails."""
        return output_of(self.python, '-c', code)

    def pip_command(self) -> list[str]:
        """Return its pip, or the one that every Python carries: uv makes environments without."""
        found = (self.ask(FIND_PIP) or '-mpip').splitlines()[0]
        pip = ['-m', 'pip'] if found == '-mpip' else [f'{found}/pip']
        return [str(self.python), *pip]

    def pip(self, *arguments: str | Path, quiet: bool = False, **variables: str) -> bool:
        """Run pip with the user's own settings; whether it succeeded."""
        kept = subprocess.PIPE if quiet else None
        done = subprocess.run(
            [*self.pip_command(), '--disable-pip-version-check', *map(str, arguments)],
            stdout=kept,
            stderr=kept,
            env={**os.environ, **variables},
        )
        return done.returncode == 0

    def must_pip(self, what: str, *arguments: str | Path, **variables: str) -> None:
        if not self.pip(*arguments, **variables):
            raise SetupError(f'{what} failed: mend what pip says above')

    def version_of(self, distribution: str) -> str | None:
        return self.ask(f'from importlib.metadata import version; print(version({distribution!r}))')

    def tag(self) -> str:
        return self.ask('import sys; print("cp%d%d" % sys.version_info[:2])') or ''


def clock(seconds: float) -> str:
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


@contextlib.contextmanager
def only_one(path: Path, what: str) -> Iterator[int]:
    """Wait for another process that holds the lock ``path``; yield the lock's file descriptor.

    The compiler inherits the descriptor, so a build whose parent was killed still holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f'another {what} is running; waiting for it')
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


# --- The machine ---------------------------------------------------------------------------------


def check_headers(python: str | Path) -> None:
    include = output_of(python, '-c', 'import sysconfig; print(sysconfig.get_path("include"))')
    if not include or not Path(include, 'Python.h').exists():
        version = output_of(python, '-c', 'import sys; print("%d.%d" % sys.version_info[:2])')
        raise SetupError(
            f'the C headers of {python} (Python.h) are missing, and mmcv is compiled against them: '
            f'install them (on Debian and Ubuntu: apt install python{version}-dev)'
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
        f'no working C++ compiler ({asked or "c++, g++ or clang++"}), and mmcv is compiled here: '
        'install one (on Debian and Ubuntu: apt install g++)'
    )


def check_disk(folder: Path, need_gb: float) -> None:
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < need_gb:
        raise SetupError(
            f'{free_gb:.1f} GB are free on the disk of {folder} and about {need_gb} GB are needed: '
            'make room'
        )


def has_gpu() -> bool:
    return bool(output_of('nvidia-smi', '-L'))


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def available_memory_gb() -> float:
    with contextlib.suppress(OSError):
        match = re.search(r'MemAvailable:\s+(\d+) kB', Path('/proc/meminfo').read_text())
        if match:
            return int(match.group(1)) / 1e6
    return JOB_MEMORY_GB * usable_cores()


def compile_jobs(cores: int, memory_gb: float) -> int:
    """As many compiler processes as there are cores, if the memory holds them."""
    return max(1, min(cores, int(memory_gb / JOB_MEMORY_GB)))


# --- CUDA ----------------------------------------------------------------------------------------

NO_CUDA_OPS = (
    "mmcv's ops (NMS, RoIAlign, focal loss) are those for the CPU, so a detector runs on the CPU "
    'only (CUDA_VISIBLE_DEVICES= hides the GPU from it); segmentors use the GPU'
)


def cuda_is_forced() -> bool:
    return os.environ.get('FORCE_CUDA') == '1'


def torch_cuda(environment: Environment) -> tuple[str, str]:
    """Return the CUDA version that torch was built for, '' for none, and the toolkit's folder."""
    query = (
        'import torch; from torch.utils.cpp_extension import CUDA_HOME;'
        'print(torch.version.cuda or ""); print(CUDA_HOME or "")'
    )
    version, _, home = (environment.ask(query) or '').partition('\n')
    return version, home


def nvcc_release(text: str | None) -> str | None:
    match = re.search(r'release (\d+\.\d+)', text or '')
    return match.group(1) if match else None


def nvcc_trouble(torch_version: str, nvcc: str | None) -> str | None:
    """Say why CUDA ops cannot be compiled for a torch of this CUDA version, None if they can."""
    if nvcc is None:
        return 'there is no CUDA compiler (nvcc)'
    if nvcc.split('.')[0] != torch_version.split('.')[0]:
        return f'nvcc is {nvcc} and torch wants CUDA {torch_version}'
    return None


# --- Wheels --------------------------------------------------------------------------------------

PROBE = """
import sys, torch
from mmcv.ops import get_compiling_cuda_version, nms, roi_align
if sys.argv[1] == 'cuda':
    assert get_compiling_cuda_version() != 'not available', 'it was compiled without CUDA'
# A build for CUDA may take place where there is no GPU, as for a container.
device = sys.argv[1] if torch.cuda.is_available() else 'cpu'
boxes = torch.tensor([[0., 0., 4., 4.], [0., 0., 4., 3.9], [5., 5., 8., 8.]], device=device)
kept = nms(boxes, torch.tensor([.9, .8, .7], device=device), 0.5)[1]
assert kept.tolist() == [0, 2], kept
rois = torch.cat([boxes.new_zeros(3, 1), boxes], 1)
pooled = roi_align(torch.ones(1, 1, 8, 8, device=device), rois, 2)
assert pooled.shape == (3, 1, 2, 2), pooled.shape
"""


@dataclass(frozen=True)
class Target:
    """Where mmcv goes and for which device."""

    environment: Environment
    stack: Stack
    torch: str
    device: str

    @property
    def requirement(self) -> str:
        return f'{self.stack.mmcv}=={self.stack.mmcv_version}'

    @property
    def wheel_prefix(self) -> str:
        name = self.stack.mmcv.replace('-', '_')
        return f'{name}-{self.stack.mmcv_version}-{self.environment.tag()}-'

    @property
    def folder(self) -> Path:
        """Where what is built for it lies, and what an interrupted build left."""
        return CACHE / f'{self.wheel_prefix}torch{self.torch}-{self.device}'

    def torch_minor(self) -> tuple[int, int]:
        major, minor = self.torch.split('.')[:2]
        return int(major), int(minor)


def probe_ops(target: Target) -> str | None:
    """Run two of mmcv's ops in a process of its own; return what went wrong, None if nothing."""
    done = subprocess.run(
        [str(target.environment.python), '-c', PROBE, target.device],
        cwd=Path.home(),  # not a folder with sources of mmcv in it
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f'exit status {done.returncode}'


def try_wheel(wheel: str | Path, target: Target) -> str | None:
    """Install a wheel of mmcv and run its ops; return what went wrong, None if nothing."""
    arguments = ('install', '--quiet', '--no-deps', '--force-reinstall', wheel)
    if not target.environment.pip(*arguments, quiet=True):
        return 'pip cannot install it'
    return probe_ops(target)


def use_named_wheel(wheel: str, targets: list[Target]) -> None:
    if not Path(wheel).is_file():
        raise SetupError(f'MMCV_WHEEL={wheel} is no file: name one, or unset MMCV_WHEEL')
    troubles = []
    for target in targets:
        troubles.append(try_wheel(Path(wheel).resolve(), target))
        if troubles[-1] is None:
            return
    raise SetupError(
        f'MMCV_WHEEL={wheel} does not work with torch {targets[0].torch} ({troubles[-1]}): '
        'unset MMCV_WHEEL to have mmcv compiled here'
    )


def kept_wheels(target: Target) -> list[str]:
    """Wheels that are there already: the last build's, then those in pip's cache."""
    wheels = sorted(str(path) for path in target.folder.glob('*.whl'))
    name = target.stack.mmcv.replace('-', '_')
    pip = target.environment.pip_command()
    listed = output_of(*pip, 'cache', 'list', '--format', 'abspath', name)
    wheels += [line for line in (listed or '').split('\n') if f'/{target.wheel_prefix}' in line]
    return wheels


def offered_wheels(target: Target) -> list[str]:
    """Download the wheel that the stack's publishers offer for this torch, if there is one."""
    if target.torch_minor() > target.stack.wheels_until:
        return []
    minor = '{}.{}'.format(*target.torch_minor())
    device = target.device
    if device == 'cuda':
        device = 'cu' + torch_cuda(target.environment)[0].replace('.', '')
    page = target.stack.wheels.format(device=device, minor=minor, digits=minor.replace('.', ''))
    folder = target.folder / 'offered'
    say(f'looking for a wheel at {page}')
    found = target.environment.pip(
        *('--retries', '0', '--timeout', '15', 'download', '--no-deps', '--only-binary', ':all:'),
        *('--no-index', '--find-links', page, '-d', folder, target.requirement),
        quiet=True,
    )
    return [str(path) for path in folder.glob('*.whl')] if found else []


def use_found_wheel(target: Target) -> bool:
    """Use the installed mmcv or a wheel that is there or offered, if its ops run."""
    installed = target.environment.version_of(target.stack.mmcv)
    if installed == target.stack.mmcv_version and probe_ops(target) is None:
        say(f'the installed mmcv {installed} works with torch {target.torch}: its ops run')
        return True
    for find in (kept_wheels, offered_wheels):
        for wheel in find(target):
            trouble = try_wheel(wheel, target)
            if trouble is None:
                say(f'using the wheel {Path(wheel).name}: its ops run with torch {target.torch}')
                return True
            say(f'passing over {wheel}: {trouble}')
    return False


# --- Source --------------------------------------------------------------------------------------

METADATA_BACKEND = '''
"""Answer pip with the metadata in the source distribution; mmcv's setup.py need not run for it."""
import email, pathlib, shutil, sys


def prepare_metadata_for_build_wheel(folder, config_settings=None):
    found = email.message_from_string(pathlib.Path('PKG-INFO').read_text(encoding='utf-8'))
    info = pathlib.Path(folder, f"{found['Name'].replace('-', '_')}-{found['Version']}.dist-info")
    info.mkdir()
    shutil.copy('PKG-INFO', info / 'METADATA')
    return info.name


__legacy__ = sys.modules[__name__]
'''

PKG_RESOURCES = 'from pkg_resources import DistributionNotFound, get_distribution, parse_version\n'
STANDARD_LIBRARY = """\
from importlib.metadata import PackageNotFoundError as DistributionNotFound
from importlib.metadata import distribution as get_distribution


def parse_version(text):
    return tuple(int(part) for part in re.findall(r'\\d+', str(text).split('+')[0])[:3])


"""
EXEC_IN_LOCALS = """exec(compile(f.read(), version_file, 'exec'))
    return locals()['__version__']"""
EXEC_IN_SCOPE = """scope = {}
        exec(compile(f.read(), version_file, 'exec'), scope)
    return scope['__version__']"""


def edited(setup_py: str, torch_minor: tuple[int, int]) -> str:
    """mmcv's ``setup.py`` without pkg_resources, for Python 3.13, in the C++ of torch's headers."""
    text = setup_py.replace(PKG_RESOURCES, STANDARD_LIBRARY)
    text = text.replace(EXEC_IN_LOCALS, EXEC_IN_SCOPE)
    return text.replace('-std=c++17', '-std=c++20') if torch_minor >= CXX20_SINCE else text


def download_source(target: Target) -> Path:
    """Download mmcv's source distribution into the target's folder."""
    backend = target.folder / 'backend' / 'setuptools'
    backend.mkdir(parents=True, exist_ok=True)
    (backend / '__init__.py').touch()
    (backend / 'build_meta.py').write_text(METADATA_BACKEND)
    target.environment.must_pip(
        "downloading mmcv's source",
        *('download', '--quiet', '--no-deps', '--no-binary', target.stack.mmcv),
        *('--no-build-isolation', '--use-pep517', '-d', target.folder, target.requirement),
        PYTHONPATH=str(backend.parent),
    )
    return next(target.folder.glob('*.tar.gz'))


def mmcv_source(target: Target) -> Path:
    """Unpack mmcv's source, edited for this torch, or find it there from an interrupted build."""
    source = target.folder / 'source'
    if source.exists():
        return source
    unpacked = target.folder / 'unpacked'
    shutil.rmtree(unpacked, ignore_errors=True)
    archive = next(target.folder.glob('*.tar.gz'), None) or download_source(target)
    shutil.unpack_archive(archive, unpacked)
    (tree,) = unpacked.iterdir()
    setup_py = tree / 'setup.py'
    setup_py.write_text(edited(setup_py.read_text(), target.torch_minor()))
    tree.rename(source)
    return source


def build_tools(target: Target) -> Path:
    """Install what a build needs into a folder beside it: the environment is left alone."""
    folder = target.folder / 'tools'
    done = folder / 'complete'
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        target.environment.must_pip(
            'installing the tools of the build',
            'install',
            '--quiet',
            '--target',
            folder,
            *BUILD_TOOLS,
        )
        done.touch()
    return folder


# --- Compiling -----------------------------------------------------------------------------------


SYSTEM = Path('/usr')
CUDA_HEADERS = """
import nvidia, os, pathlib
found = (path for home in nvidia.__path__ for path in pathlib.Path(home).glob('*/include'))
print(*sorted(map(str, found)), sep=os.pathsep)
"""


def header_path(environment: Environment) -> str:
    """Return the user's ``CPATH``, and after it pip's CUDA headers where the toolkit lacks them.

    A toolkit without libraries (cuSPARSE, cuBLAS) lacks headers that torch's own include. A
    complete one keeps its own headers: compilers search ``CPATH`` before the system's folders, so
    pip's would be taken in place of those in /usr/include.
    """
    toolkit = Path(torch_cuda(environment)[1] or SYSTEM, 'include')
    complete = any((folder / 'cusparse.h').exists() for folder in (toolkit, SYSTEM / 'include'))
    folders = os.environ.get('CPATH'), None if complete else environment.ask(CUDA_HEADERS)
    return os.pathsep.join(filter(None, folders))


def build_variables(target: Target, tools: Path, jobs: int) -> dict[str, str]:
    """Return the environment variables of a build."""
    variables = {**os.environ, 'MMCV_WITH_OPS': '1', 'PYTHONUNBUFFERED': '1'}
    variables['FORCE_CUDA'] = '1' if target.device == 'cuda' else '0'
    if target.device == 'cpu':
        variables['CUDA_VISIBLE_DEVICES'] = ''  # mmcv builds for CUDA wherever it sees a GPU
    elif headers := header_path(target.environment):
        variables['CPATH'] = headers
    variables['PATH'] = f'{tools / "bin"}{os.pathsep}{os.environ["PATH"]}'
    variables['PYTHONPATH'] = str(tools)
    variables['CXX'] = find_compiler()
    # Debugging symbols of the ops serve nobody and take a third of the time.
    variables['CPPFLAGS'] = f'{os.environ.get("CPPFLAGS", "")} -g0'
    variables['MAX_JOBS'] = str(jobs)
    return variables


COMPILE_COMMAND = """
import setuptools, shlex, torch
from distutils.ccompiler import new_compiler
from distutils.sysconfig import customize_compiler
from torch.utils.cpp_extension import BuildExtension, include_paths
compiler = new_compiler()
customize_compiler(compiler)
flags = [*compiler.compiler_so[1:], *('-I' + path for path in include_paths())]
if hasattr(BuildExtension, '_add_gnu_cpp_abi_flag'):  # torch < 2.8
    flags.append('-D_GLIBCXX_USE_CXX11_ABI=%d' % torch._C._GLIBCXX_USE_CXX11_ABI)
print(shlex.join(flags))
"""


def precompile_headers(source: Path, target: Target, variables: dict[str, str]) -> None:
    """Compile torch's headers once; every object would else read them again.

    GCC takes ``NAME.gch`` beside a header for it where the compiler's options agree, and passes
    over it where they do not. ninja knows the file as what the objects were made of, so an
    interrupted build keeps it.
    """
    header = source / 'mmcv/ops/csrc/common/pytorch_cpp_helper.hpp'
    compiler = variables['CXX'].split()
    if 'Free Software Foundation' not in (output_of(*compiler, '--version') or ''):
        return
    precompiled = header.with_name(f'{header.name}.gch')
    standard = re.search(r'-std=c\+\+(17|20)', (source / 'setup.py').read_text())
    flags = output_of(target.environment.python, '-c', COMPILE_COMMAND, env=variables)
    if not precompiled.exists() and flags and standard:
        say("precompiling torch's headers")
        unfinished = precompiled.with_suffix('.part')
        arguments = (*shlex.split(flags), standard.group(), '-x', 'c++-header', header)
        if output_of(*compiler, *arguments, '-o', unfinished, env=variables) is None:
            return
        unfinished.rename(precompiled)
    # -include, as a precompiled header counts only where nothing was read before it.
    variables['CPPFLAGS'] += f' -include "{header}"'


def ninja_count(line: str) -> tuple[int, int] | None:
    """Read how many of how many objects are compiled from a line of ninja, ``[3/120] c++ ...``."""
    match = re.match(r'\[(\d+)/(\d+)\] ', line)
    return (int(match.group(1)), int(match.group(2))) if match else None


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


def compile_mmcv(
    python: Path, source: Path, log: Path, variables: dict[str, str], lock: int
) -> bool:
    """Build mmcv's wheel with a progress line, everything else into ``log``; whether it worked."""
    progress = Progress()
    process = subprocess.Popen(
        [str(python), 'setup.py', 'bdist_wheel'],
        cwd=source,
        env=variables,
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
        return 'the compiler ran out of memory; set MAX_JOBS=1 and run this again'
    errors = [line for line in text.splitlines() if re.search(r'\berror\b:', line, re.IGNORECASE)]
    return (errors or ['no error line in its log'])[0].strip()


def already_compiled(source: Path) -> str:
    count = len(list(source.glob('build/**/*.o')))
    return f', less the {count} objects that an earlier run compiled' if count else ''


def build(target: Target, lock: int) -> None:
    """Compile, install and try mmcv's ops; keep the wheel."""
    check_headers(target.environment.python)
    find_compiler()
    check_disk(target.folder, DISK_GB)
    jobs = int(os.environ.get('MAX_JOBS') or compile_jobs(usable_cores(), available_memory_gb()))
    minutes = max(1, round(COMPILE_CORE_MINUTES[target.device] / min(jobs, usable_cores())))
    estimate = f'{minutes} minutes or more'
    source = mmcv_source(target)
    tools = build_tools(target)
    log = target.folder / 'build.log'
    say(f'compiling {target.requirement} with torch {target.torch} for {target.device}; log: {log}')
    say(f'this takes {estimate} here, with {jobs} compiler processes{already_compiled(source)}')
    variables = build_variables(target, tools, jobs)
    precompile_headers(source, target, variables)
    if not compile_mmcv(target.environment.python, source, log, variables, lock):
        raise SetupError(f'compiling mmcv failed ({build_failure(log)}): see {log}')
    trouble = try_wheel(next((source / 'dist').glob('*.whl')), target)
    if trouble:
        raise SetupError(
            f'mmcv was compiled but its ops do not run ({trouble}): '
            f'remove {target.folder} to have it compiled anew'
        )
    shutil.copy(next((source / 'dist').glob('*.whl')), target.folder)
    for name in ('source', 'unpacked', 'tools', 'backend'):
        shutil.rmtree(target.folder / name, ignore_errors=True)


# --- All of it -----------------------------------------------------------------------------------


def targets_for(environment: Environment, stack: Stack) -> list[Target]:
    """Devices to build for: the CPU, and before it CUDA where that can be used."""
    torch = environment.ask('import torch; print(torch.__version__)')
    if torch is None:
        raise SetupError(
            'torch is not installed or does not import, and mmcv is built for one torch: '
            f"install it with {shlex.join(environment.pip_command())} install 'torch>=2.6'"
        )
    devices = ['cpu']
    if has_gpu() or cuda_is_forced():
        if torch_cuda(environment)[0]:
            devices.insert(0, 'cuda')
        elif cuda_is_forced():
            raise SetupError(
                'FORCE_CUDA=1 is set, but the installed torch is one without CUDA: '
                'install one with it, or unset FORCE_CUDA'
            )
        else:
            say('the installed torch is one without CUDA: everything runs on the CPU')
    return [Target(environment, stack, torch, device) for device in devices]


def provide(target: Target) -> str | None:
    """Have mmcv with ops for one target; say why not where CUDA's cannot be had."""
    with only_one(target.folder / 'lock', 'build of this mmcv') as lock:
        if use_found_wheel(target):
            return None
        if target.device == 'cpu':
            build(target, lock)
            return None
        version, home = torch_cuda(target.environment)
        nvcc = output_of(Path(home, 'bin', 'nvcc'), '--version') if home else None
        trouble = nvcc_trouble(version, nvcc_release(nvcc))
        if trouble is None:
            try:
                build(target, lock)
            except SetupError as error:
                trouble = str(error)
        return trouble


def install_mmcv(environment: Environment, stack: Stack) -> None:
    """Have mmcv with ops that run, from what is there if it works, else by compiling it.

    Raises:
        SetupError: If that is impossible; the message says what to do.
    """
    targets = targets_for(environment, stack)
    named = os.environ.get('MMCV_WHEEL')
    if named:
        use_named_wheel(named, targets)
        return
    for target in targets:
        trouble = provide(target)
        if trouble is None:
            return
        if cuda_is_forced():
            raise SetupError(f'FORCE_CUDA=1 is set, but {trouble}: mend that, or unset FORCE_CUDA')
        say(f'{trouble}: {NO_CUDA_OPS}')


def terminate(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def run_command(work: Callable[[], None], again: str) -> int:
    """Run ``work`` as a command line does: its errors in one line that ends in what to run next."""
    signal.signal(signal.SIGTERM, terminate)
    start = time.monotonic()
    try:
        work()
    except InstallationError as error:
        print(f'[setup] {error}', file=sys.stderr)
        return 1
    except SetupError as error:
        print(f'[setup] {error}, then run {error.then or again}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'\n[setup] interrupted; "{again}" goes on where it stopped', file=sys.stderr)
        return 130
    say(f'done ({clock(time.monotonic() - start)})')
    return 0


def main() -> int:
    environment = Environment(Path(sys.executable))
    return run_command(lambda: install_mmcv(environment, find_stack()), BUILD_COMMAND)


if __name__ == '__main__':
    sys.exit(main())
