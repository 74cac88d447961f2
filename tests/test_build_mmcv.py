"""The decisions of ``python -m mirrorla_mm.build_mmcv``, without building anything."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from mirrorla_mm import build_mmcv
from mirrorla_mm.stack import STACKS

ROOT = Path(__file__).resolve().parents[1]
SETUP = str(ROOT / 'tools' / 'dev' / 'setup_env.py')
OPENMMLAB, ONEDL = STACKS['openmmlab'], STACKS['onedl']


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Builds lie in ``tmp_path``, and the user asked for nothing."""
    monkeypatch.setattr(build_mmcv, 'CACHE', tmp_path / 'cache')
    for name in ('CXX', 'MMCV_WHEEL', 'MAX_JOBS', 'FORCE_CUDA'):
        monkeypatch.delenv(name, raising=False)


def executable(path, text):
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)
    return path


def target_for(python=sys.executable, device='cpu', torch='2.13.0', stack=OPENMMLAB):
    environment = build_mmcv.Environment(Path(python))
    target = build_mmcv.Target(environment, stack, torch, device)
    target.folder.mkdir(parents=True, exist_ok=True)
    return target


def one_line(error):
    assert '\n' not in str(error.value)
    return str(error.value)


# --- The environment -----------------------------------------------------------------------------


def test_environment_s_own_pip_is_used():
    pip = build_mmcv.Environment(Path(sys.executable)).pip_command()
    assert pip[:3] == [sys.executable, '-m', 'pip']


def test_environment_without_pip_uses_the_one_that_python_carries(tmp_path):
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'env'], check=True)
    environment = build_mmcv.Environment(tmp_path / 'env' / 'bin' / 'python')
    assert environment.pip('--version', quiet=True)
    assert environment.version_of('pip') is None


def test_failing_pip_ends_in_one_line(tmp_path):
    environment = build_mmcv.Environment(executable(tmp_path / 'python', 'exit 1'))
    with pytest.raises(build_mmcv.SetupError) as error:
        environment.must_pip('downloading', 'download', 'nothing')
    assert one_line(error) == 'downloading failed: mend what pip says above'


def test_missing_torch_names_the_command_for_the_environment_that_lacks_it(tmp_path):
    python = executable(tmp_path / 'python', 'exit 1')
    environment = build_mmcv.Environment(python)
    with pytest.raises(build_mmcv.SetupError) as error:
        build_mmcv.targets_for(environment, OPENMMLAB)
    assert one_line(error).endswith(f"with {python} -m pip install 'torch>=2.6'")


# --- The machine ---------------------------------------------------------------------------------


@pytest.mark.parametrize('command', [('-m', 'mirrorla_mm.build_mmcv'), (SETUP,)])
def test_windows_is_refused_in_one_sentence_that_ends_in_the_command(tmp_path, command):
    (tmp_path / 'sitecustomize.py').write_text('import sys; sys.modules["fcntl"] = None')
    path = f'{tmp_path}{os.pathsep}{ROOT}'
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': path},
    )
    assert done.returncode == 1
    assert done.stderr == (
        '[setup] this runs on Linux and macOS: get a Linux inside Windows with wsl --install\n'
    )


def test_missing_headers_are_named(tmp_path):
    python = executable(tmp_path / 'python', f'echo {tmp_path}')
    with pytest.raises(build_mmcv.SetupError) as error:
        build_mmcv.check_headers(python)
    assert 'Python.h' in one_line(error)
    (tmp_path / 'Python.h').touch()
    build_mmcv.check_headers(python)


def test_compiler_that_cannot_do_cxx_counts_as_missing(tmp_path, monkeypatch):
    executable(tmp_path / 'c++', 'exit 1')  # gcc without g++ behaves so
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(build_mmcv.SetupError) as error:
        build_mmcv.find_compiler()
    assert 'no working C++ compiler' in one_line(error)
    executable(tmp_path / 'clang++', 'exit 0')
    assert build_mmcv.find_compiler() == 'clang++'


def test_compiler_named_by_the_user_is_never_replaced(tmp_path, monkeypatch):
    executable(tmp_path / 'c++', 'exit 0')
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(build_mmcv.SetupError, match='no-such-compiler'):
        build_mmcv.find_compiler()


def test_full_disk_says_how_much_is_needed(tmp_path):
    build_mmcv.check_disk(tmp_path, 0)
    with pytest.raises(build_mmcv.SetupError) as error:
        build_mmcv.check_disk(tmp_path, 10**9)
    assert f'about {10**9} GB are needed' in one_line(error)


@pytest.mark.parametrize(
    ('cores', 'memory_gb', 'jobs'), [(2, 16, 2), (64, 16, 8), (4, 0.5, 1), (1, 64, 1)]
)
def test_compiler_processes_fit_cores_and_memory(cores, memory_gb, jobs):
    assert build_mmcv.compile_jobs(cores, memory_gb) == jobs


# --- Wheels --------------------------------------------------------------------------------------


def test_probe_reports_the_last_line_of_a_failure(tmp_path):
    failing = 'echo Traceback >&2; echo "ImportError: undefined symbol" >&2; exit 1'
    target = target_for(executable(tmp_path / 'failing', failing))
    assert build_mmcv.probe_ops(target) == 'ImportError: undefined symbol'
    assert build_mmcv.probe_ops(target_for(executable(tmp_path / 'fine', 'exit 0'))) is None


@pytest.mark.slow
def test_probe_runs_against_the_real_ops(monkeypatch):
    pytest.importorskip('mmcv.ops')
    assert build_mmcv.probe_ops(target_for()) is None
    monkeypatch.setattr(build_mmcv, 'PROBE', build_mmcv.PROBE.replace('[0, 2]', '[0, 1]'))
    assert 'AssertionError' in build_mmcv.probe_ops(target_for())


def wheel(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    return folder / name


def test_stale_wheels_are_passed_over_until_one_s_ops_run(tmp_path, monkeypatch, capsys):
    target = target_for()
    name = f'{target.wheel_prefix}linux_x86_64.whl'
    kept = wheel(target.folder, name)
    cached = wheel(tmp_path / 'pip', name)
    other_python = wheel(tmp_path / 'pip', 'mmcv-2.1.0-cp39-cp39-linux_x86_64.whl')
    real = build_mmcv.output_of
    monkeypatch.setattr(
        build_mmcv,
        'output_of',
        lambda *command: f'{cached}\n{other_python}' if 'cache' in command else real(*command),
    )
    tried = []

    def try_wheel(path, target):
        tried.append(str(path))
        return 'undefined symbol' if len(tried) == 1 else None

    monkeypatch.setattr(build_mmcv, 'try_wheel', try_wheel)
    monkeypatch.setattr(build_mmcv, 'probe_ops', lambda target: 'no mmcv')
    assert build_mmcv.use_found_wheel(target)
    assert tried == [str(kept), str(cached)]
    assert f'passing over {kept}: undefined symbol' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('stack', 'torch', 'device', 'page'),
    [
        (ONEDL, '2.10.0+cpu', 'cpu', 'https://mmwheels.onedl.ai/cpu-torch2100/simple/onedl-mmcv/'),
        (ONEDL, '2.8.0', 'cuda', 'https://mmwheels.onedl.ai/cu128-torch280/simple/onedl-mmcv/'),
        (OPENMMLAB, '2.1.2', 'cpu', 'https://download.openmmlab.com/mmcv/dist/cpu/torch2.1.0/'),
        (ONEDL, '2.13.0', 'cpu', None),
        (OPENMMLAB, '2.13.0', 'cpu', None),
    ],
)
def test_publisher_s_wheels_are_asked_for_where_there_are_some(
    monkeypatch, stack, torch, device, page
):
    asked = []
    monkeypatch.setattr(build_mmcv, 'torch_cuda', lambda environment: ('12.8', ''))
    monkeypatch.setattr(
        build_mmcv.Environment, 'pip', lambda self, *arguments, **_: asked.append(arguments)
    )
    assert build_mmcv.offered_wheels(target_for(device=device, torch=torch, stack=stack)) == []
    pages = [part for part in sum(asked, ()) if str(part).startswith('https:')]
    assert pages == ([f'{page}index.html'] if page else [])


def test_named_wheel_that_does_not_work_is_an_error_not_a_build(tmp_path, monkeypatch):
    monkeypatch.setattr(build_mmcv, 'provide', lambda target: pytest.fail('built'))
    monkeypatch.setattr(build_mmcv, 'targets_for', lambda *_: [target_for()])
    monkeypatch.setenv('MMCV_WHEEL', 'missing.whl')
    with pytest.raises(build_mmcv.SetupError, match='missing.whl is no file'):
        build_mmcv.install_mmcv(target_for().environment, OPENMMLAB)
    monkeypatch.setenv('MMCV_WHEEL', str(wheel(tmp_path, 'mmcv.whl')))
    monkeypatch.setattr(build_mmcv, 'try_wheel', lambda *_: 'undefined symbol')
    with pytest.raises(build_mmcv.SetupError, match=r'undefined symbol\): unset MMCV_WHEEL'):
        build_mmcv.install_mmcv(target_for().environment, OPENMMLAB)


# --- Which device --------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU or not, a torch for some CUDA and an nvcc; return what was built."""

    def pretend(gpu=True, torch='13.0', nvcc='13.1', found=(), fails=()):
        built = []

        def build(target, lock):
            built.append(target.device)
            if target.device in fails:
                raise build_mmcv.SetupError('compiling mmcv failed')

        monkeypatch.setattr(build_mmcv.Environment, 'ask', lambda self, code: '2.13.0')
        monkeypatch.setattr(build_mmcv, 'has_gpu', lambda: gpu)
        monkeypatch.setattr(build_mmcv, 'torch_cuda', lambda environment: (torch, '/cuda'))
        monkeypatch.setattr(build_mmcv, 'nvcc_release', lambda text: nvcc)
        monkeypatch.setattr(build_mmcv, 'use_found_wheel', lambda target: target.device in found)
        monkeypatch.setattr(build_mmcv, 'build', build)
        build_mmcv.install_mmcv(target_for().environment, OPENMMLAB)
        return built

    return pretend


def test_device_of_the_ops_follows_gpu_torch_and_compiler(machine, capsys):
    assert machine(gpu=False) == ['cpu']
    assert machine(torch='') == ['cpu']
    assert 'torch is one without CUDA' in capsys.readouterr().out
    assert machine() == ['cuda']
    assert machine(nvcc=None) == ['cpu']
    assert 'no CUDA compiler (nvcc)' in capsys.readouterr().out
    assert machine(nvcc='12.4') == ['cpu']
    assert 'nvcc is 12.4 and torch wants CUDA 13.0' in capsys.readouterr().out


def test_wheel_with_cuda_ops_needs_no_compiler(machine):
    assert machine(nvcc=None, found=('cuda',)) == []
    assert machine(found=('cpu',)) == ['cuda']


def test_failing_cuda_build_goes_on_with_cpu_ops(machine, capsys):
    assert machine(fails=('cuda',)) == ['cuda', 'cpu']
    assert 'segmentors use the GPU' in capsys.readouterr().out


def test_cuda_can_be_asked_for_without_a_gpu_and_is_then_had_or_refused(machine, monkeypatch):
    monkeypatch.setenv('FORCE_CUDA', '1')
    assert machine(gpu=False) == ['cuda']
    with pytest.raises(build_mmcv.SetupError, match='set, but compiling mmcv failed: mend'):
        machine(gpu=False, fails=('cuda',))
    with pytest.raises(build_mmcv.SetupError, match='torch is one without CUDA: install one'):
        machine(gpu=False, torch='')


def test_cuda_build_is_given_to_setup_py_once_nvcc_has_said_its_version(tmp_path, monkeypatch):
    (tmp_path / 'cuda' / 'bin').mkdir(parents=True)
    banner = 'echo Cuda compilation tools, release 13.0, V13.0.88'
    executable(tmp_path / 'cuda' / 'bin' / 'nvcc', banner)
    names = 'FORCE_CUDA TORCH_CUDA_ARCH_LIST CUDA_VISIBLE_DEVICES MMCV_WITH_OPS MAX_JOBS'
    shown = ' '.join(f'{name}=${name}' for name in names.split())
    noted = f'echo "$@ {shown}" > {tmp_path}/asked; mkdir dist; touch dist/mmcv.whl'
    python = executable(tmp_path / 'python', f'case $1 in setup.py) {noted};; esac')
    monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', '9.0')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '1')
    monkeypatch.setenv('MAX_JOBS', '3')
    target = target_for(python, device='cuda')
    for folder in ('source', 'tools'):
        (target.folder / folder).mkdir()
    (target.folder / 'tools' / 'complete').touch()
    monkeypatch.setattr(build_mmcv, 'torch_cuda', lambda _: ('13.0', str(tmp_path / 'cuda')))
    for name in ('check_headers', 'precompile_headers', 'try_wheel'):
        monkeypatch.setattr(build_mmcv, name, lambda *_: None)
    monkeypatch.setattr(build_mmcv, 'use_found_wheel', lambda _: False)
    assert build_mmcv.provide(target) is None
    assert (tmp_path / 'asked').read_text().split() == [
        *('setup.py', 'bdist_wheel', 'FORCE_CUDA=1', 'TORCH_CUDA_ARCH_LIST=9.0'),
        *('CUDA_VISIBLE_DEVICES=1', 'MMCV_WITH_OPS=1', 'MAX_JOBS=3'),
    ]
    assert (target.folder / 'mmcv.whl').exists() and target.folder.name.endswith('-cuda')


def test_nvcc_release_is_read_from_its_banner():
    banner = 'Cuda compilation tools, release 12.4, V12.4.131'
    assert build_mmcv.nvcc_release(banner) == '12.4'
    assert build_mmcv.nvcc_release(None) is None


# --- Source --------------------------------------------------------------------------------------

SETUP_PY = """
import re
from pkg_resources import DistributionNotFound, get_distribution, parse_version
try:
    get_distribution('no-such-distribution')
except DistributionNotFound:
    found = False
old = parse_version('2.9.1+cu128') <= parse_version('2.10')
def get_version():
    version_file = 'mmcv/version.py'
    with open(version_file, encoding='utf-8') as f:
        exec(compile(f.read(), version_file, 'exec'))
    return locals()['__version__']
version = get_version()
flag = '-std=c++17'
"""


@pytest.mark.parametrize(('minor', 'flag'), [((2, 13), '-std=c++17'), ((2, 14), '-std=c++20')])
def test_setup_py_of_mmcv_runs_on_every_python_without_pkg_resources(
    tmp_path, monkeypatch, minor, flag
):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / 'version.py').write_text("__version__ = '2.1.0'")
    (tmp_path / 'setup.py').write_text(build_mmcv.edited(SETUP_PY, minor))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'pkg_resources', None)
    scope = runpy.run_path('setup.py')
    assert (scope['found'], scope['old']) == (False, True)
    assert (scope['version'], scope['flag']) == ('2.1.0', flag)


def source_archive(folder, name='mmcv-2.1.0', setup_py='raise SystemExit("setup.py ran")'):
    tree = folder / name
    tree.mkdir(parents=True)
    (tree / 'setup.py').write_text(setup_py)
    metadata = 'Metadata-Version: 2.1\nName: mmcv\nVersion: 2.1.0\n\nName: none\n'
    (tree / 'PKG-INFO').write_text(metadata)
    with tarfile.open(folder / f'{name}.tar.gz', 'w:gz') as archive:
        archive.add(tree, name)
    shutil.rmtree(tree)
    return folder


def test_source_is_downloaded_without_running_its_setup_py(tmp_path, monkeypatch):
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(source_archive(tmp_path / 'index')))
    source = build_mmcv.mmcv_source(target_for())
    assert (source / 'setup.py').read_text() == 'raise SystemExit("setup.py ran")'


def test_interrupted_source_is_kept(monkeypatch):
    monkeypatch.setattr(build_mmcv, 'download_source', lambda *_: pytest.fail('downloaded again'))
    target = target_for()
    (target.folder / 'source' / 'build').mkdir(parents=True)
    assert build_mmcv.mmcv_source(target) == target.folder / 'source'
    (target.folder / 'source' / 'build' / 'a.o').touch()
    assert '1 objects' in build_mmcv.already_compiled(target.folder / 'source')


# --- Compiling -----------------------------------------------------------------------------------


def test_cpu_build_does_not_see_the_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(build_mmcv, 'find_compiler', lambda: 'g++')
    cpu, cuda = (
        build_mmcv.build_variables(target_for(device=device), tmp_path, 3)
        for device in ('cpu', 'cuda')
    )
    assert (cpu['FORCE_CUDA'], cpu['CUDA_VISIBLE_DEVICES']) == ('0', '')
    assert cuda['FORCE_CUDA'] == '1'
    assert cpu['MAX_JOBS'] == '3' and cpu['MMCV_WITH_OPS'] == '1'


def test_cuda_build_finds_the_headers_of_pip_s_cuda_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(build_mmcv, 'find_compiler', lambda: 'g++')
    folders = [tmp_path / 'nvidia' / name / 'include' for name in ('cu13', 'cudnn')]
    for folder in folders:
        folder.mkdir(parents=True)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.setenv('CPATH', '/mine')
    toolkit, system = (tmp_path / name for name in ('toolkit', 'system'))
    monkeypatch.setattr(build_mmcv, 'torch_cuda', lambda environment: ('13.0', str(toolkit)))
    monkeypatch.setattr(build_mmcv, 'SYSTEM', system)

    def path(device: str) -> list[str]:
        variables = build_mmcv.build_variables(target_for(device=device), tmp_path, 1)
        return variables['CPATH'].split(':')

    assert path('cuda')[:3] == ['/mine', *map(str, folders)]
    assert path('cpu') == ['/mine']
    for complete in (toolkit, system):
        header = complete / 'include' / 'cusparse.h'
        header.parent.mkdir(parents=True)
        header.touch()
        assert path('cuda') == ['/mine']
        header.unlink()


def test_headers_are_precompiled_once_and_only_for_gcc(tmp_path, monkeypatch):
    source = tmp_path / 'source'
    header = source / 'mmcv/ops/csrc/common/pytorch_cpp_helper.hpp'
    header.parent.mkdir(parents=True)
    header.write_text('#include <vector>\n')
    (source / 'setup.py').write_text("'-std=c++17'")
    python = executable(tmp_path / 'python', 'echo -O1')
    compiler = executable(
        tmp_path / 'c++',
        'case "$*" in --version) echo Free Software Foundation;; '
        f'*) echo "$*" >> {tmp_path}/calls; for last; do :; done; touch "$last";; esac',
    )
    for _ in range(2):
        variables = {'CXX': str(compiler), 'CPPFLAGS': '', 'PATH': os.environ['PATH']}
        build_mmcv.precompile_headers(source, target_for(python), variables)
        assert variables['CPPFLAGS'] == f' -include "{header}"'
    (call,) = (tmp_path / 'calls').read_text().splitlines()
    assert call.startswith('-O1 -std=c++17 -x c++-header') and '.part' in call
    assert header.with_name(f'{header.name}.gch').exists()
    executable(tmp_path / 'c++', 'echo clang')
    variables = {'CXX': str(compiler), 'CPPFLAGS': '', 'PATH': os.environ['PATH']}
    build_mmcv.precompile_headers(source, target_for(python), variables)
    assert variables['CPPFLAGS'] == ''


def test_build_leaves_its_wheel_and_nothing_else(tmp_path, monkeypatch, capsys):
    target = target_for()
    source = target.folder / 'source'
    tools = target.folder / 'tools'
    for folder in (source / 'dist', tools, target.folder / 'backend'):
        folder.mkdir(parents=True)
    wheel(source / 'dist', 'mmcv-2.1.0.whl')
    monkeypatch.setattr(build_mmcv, 'build_tools', lambda target: tools)
    monkeypatch.setattr(build_mmcv, 'precompile_headers', lambda *_: None)
    (target.folder / 'build.log').write_text('a.cpp:1: error: no\n')
    monkeypatch.setattr(build_mmcv, 'compile_mmcv', lambda *_: False)
    with pytest.raises(build_mmcv.SetupError) as error:
        build_mmcv.build(target, 0)
    log = target.folder / 'build.log'
    assert one_line(error) == f'compiling mmcv failed (a.cpp:1: error: no): see {log}'
    log.unlink()
    monkeypatch.setattr(build_mmcv, 'compile_mmcv', lambda *_: True)
    monkeypatch.setattr(build_mmcv, 'try_wheel', lambda *_: 'undefined symbol')
    with pytest.raises(build_mmcv.SetupError) as error:
        build_mmcv.build(target, 0)
    assert f'undefined symbol): remove {target.folder} to have it' in one_line(error)
    monkeypatch.setattr(build_mmcv, 'try_wheel', lambda *_: None)
    build_mmcv.build(target, 0)
    assert [path.name for path in target.folder.iterdir()] == ['mmcv-2.1.0.whl']
    assert 'compiling mmcv==2.1.0 with torch 2.13.0 for cpu' in capsys.readouterr().out


# --- Progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('line', 'count'),
    [
        ('[3/120] c++ -MMD -c a.cpp', (3, 120)),
        ('building [3/120] c++', None),
        ('[INFO] nothing', None),
        ('', None),
    ],
)
def test_ninja_s_count_is_read(line, count):
    assert build_mmcv.ninja_count(line) == count


def test_progress_says_what_is_left():
    assert build_mmcv.progress_text(30, 120, 300) == (
        'compiled 30/120 objects, 5:00 elapsed, about 15 min left'
    )
    assert build_mmcv.progress_text(1, 120, 200) == 'compiled 1/120 objects, 3:20 elapsed'
    assert build_mmcv.progress_text(120, 120, 900) == 'compiled 120/120 objects, 15:00 elapsed'


def test_build_is_shown_logged_and_judged_by_its_status(tmp_path, capsys):
    said = 'echo "[1/2] c++ a"; echo "[2/2] c++ b"; echo "a.cpp:1: error: no" >&2; exit 3'
    python = executable(tmp_path / 'python', said)
    log = tmp_path / 'build.log'
    with open(log, 'w') as lock:
        assert not build_mmcv.compile_mmcv(python, tmp_path, log, dict(os.environ), lock.fileno())
    assert 'compiled 2/2 objects' in capsys.readouterr().out
    assert build_mmcv.build_failure(log) == 'a.cpp:1: error: no'


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('x.o: No space left on device', 'the disk is full'),
        ('c++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
        ('nothing of note', 'no error line'),
    ],
)
def test_build_failures_are_explained(tmp_path, text, said):
    log = tmp_path / 'build.log'
    log.write_text(text)
    assert said in build_mmcv.build_failure(log)


def test_interruption_ends_the_compilers(tmp_path):
    child_id = tmp_path / 'child'
    waiting = f'sleep 600 & echo $! > {child_id}; echo "[1/2] c++ a"; wait'
    python = executable(tmp_path / 'python', waiting)
    previous = signal.signal(signal.SIGTERM, build_mmcv.terminate)

    def interrupt():
        while not child_id.exists() or not child_id.read_text().strip():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with open(tmp_path / 'lock', 'w') as lock, pytest.raises(KeyboardInterrupt):
            build_mmcv.compile_mmcv(
                python, tmp_path, tmp_path / 'log', dict(os.environ), lock.fileno()
            )
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, previous)
    command = ['ps', '-o', 'stat=', '-p', child_id.read_text().strip()]
    deadline = time.monotonic() + 30  # a busy machine takes its time to end what was told to

    def runs():
        state = subprocess.run(command, capture_output=True, text=True).stdout
        return bool(state) and not state.startswith('Z')

    while runs():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_second_build_waits_for_the_first(tmp_path, capsys):
    order = []
    entered = threading.Event()

    def first():
        with build_mmcv.only_one(tmp_path / 'lock', 'build of this mmcv'):
            entered.set()
            time.sleep(0.2)
            order.append('first')

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with build_mmcv.only_one(tmp_path / 'lock', 'build of this mmcv'):
        order.append('second')
    thread.join()
    assert order == ['first', 'second']
    assert 'waiting' in capsys.readouterr().out
