"""The decisions of ``make setup``, without installing or building anything."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / 'tools' / 'dev' / 'setup_env.py'


@pytest.fixture
def env(tmp_path, monkeypatch):
    """The script as a module whose folders lie in ``tmp_path``."""
    spec = importlib.util.spec_from_file_location('setup_env', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'setup_env', module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'ROOT', tmp_path)
    monkeypatch.setattr(module, 'VENV', tmp_path / '.venv')
    monkeypatch.setattr(module, 'STAMPS', tmp_path / '.venv' / 'setup-stamps')
    monkeypatch.setattr(module, 'CACHE', tmp_path / '.cache')
    for name in ('CXX', 'MMCV_WHEEL', 'MAX_JOBS'):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / '.cache').mkdir()
    (tmp_path / 'requirements').mkdir()
    (tmp_path / 'requirements' / 'tested.txt').write_text('numpy==2.0\nmmcv==2.1.0\n')
    return module


def executable(path, text):
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)
    return path


def one_line(error):
    assert '\n' not in str(error.value)
    return str(error.value)


# --- The machine ---------------------------------------------------------------------------------


def test_python_of_the_right_version_is_found_wherever_it_stands(env, monkeypatch):
    versions = {sys.executable: (3, 12), 'python3.11': None, 'python3': (3, 11)}
    monkeypatch.setattr(env, 'python_version', versions.get)
    assert env.find_python() == 'python3'


def test_wrong_python_names_what_is_needed_and_what_was_found(env, monkeypatch):
    monkeypatch.setattr(env, 'python_version', {'python3': (3, 9)}.get)
    with pytest.raises(env.SetupError) as error:
        env.find_python()
    assert 'Python 3.11 is needed (found: 3.9)' in one_line(error)


def test_version_of_a_real_and_of_a_missing_python(env):
    assert env.python_version(sys.executable) == sys.version_info[:2]
    assert env.python_version('no-such-python') is None


def test_missing_venv_module_is_named(env, tmp_path):
    python = executable(tmp_path / 'python', 'exit 1')
    with pytest.raises(env.SetupError) as error:
        env.check_venv_module(str(python))
    assert 'python3.11-venv' in one_line(error)


def test_missing_headers_are_named(env, tmp_path):
    python = executable(tmp_path / 'python', f'echo {tmp_path}')
    with pytest.raises(env.SetupError) as error:
        env.check_headers(str(python))
    assert 'Python.h' in one_line(error)
    (tmp_path / 'Python.h').touch()
    env.check_headers(str(python))


def test_compiler_that_cannot_do_cxx_counts_as_missing(env, tmp_path, monkeypatch):
    executable(tmp_path / 'c++', 'exit 1')  # gcc without g++ behaves so
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(env.SetupError) as error:
        env.find_compiler()
    assert 'no working C++ compiler' in one_line(error)
    executable(tmp_path / 'clang++', 'exit 0')
    assert env.find_compiler() == 'clang++'


def test_compiler_named_by_the_user_is_never_replaced(env, tmp_path, monkeypatch):
    executable(tmp_path / 'c++', 'exit 0')
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(env.SetupError, match='no-such-compiler'):
        env.find_compiler()


def test_full_disk_says_how_much_is_needed(env):
    env.check_disk(0)
    with pytest.raises(env.SetupError) as error:
        env.check_disk(10**9)
    assert f'about {10**9} GB are needed' in one_line(error)


@pytest.mark.parametrize(
    ('cores', 'memory_gb', 'jobs'), [(2, 16, 2), (64, 16, 8), (4, 0.5, 1), (1, 64, 1)]
)
def test_compiler_processes_fit_cores_and_memory(env, cores, memory_gb, jobs):
    assert env.compile_jobs(cores, memory_gb) == jobs


def test_environment_of_another_python_is_not_touched(env, monkeypatch):
    monkeypatch.setattr(env, 'python_version', lambda python: (3, 12))
    with pytest.raises(env.SetupError, match=r'rm -rf \.venv'):
        env.make_venv('python3.11')


def test_main_ends_with_one_line_and_a_failing_status(env, monkeypatch, capsys):
    monkeypatch.setattr(env, 'find_python', lambda: (_ for _ in ()).throw(env.SetupError('gone.')))
    previous = signal.getsignal(signal.SIGTERM)
    try:
        assert env.main() == 1
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert capsys.readouterr().err == '[setup] gone.\n'


# --- Stamps --------------------------------------------------------------------------------------


def test_stamp_holds_for_its_key_only(env):
    assert not env.Stamp('step', 'a').is_set()
    env.Stamp('step', 'a').set()
    assert env.Stamp('step', 'a').is_set()
    assert not env.Stamp('step', 'b').is_set()
    assert not env.Stamp('other', 'a').is_set()


def test_key_follows_content_and_boundaries(env, tmp_path):
    file = tmp_path / 'file'
    file.write_text('1')
    key = env.key_of(file)
    file.write_text('2')
    assert env.key_of(file) != key
    assert env.key_of('ab', 'c') != env.key_of('a', 'bc')


def site_packages(env):
    folder = env.VENV / 'lib' / 'python3.11' / 'site-packages'
    (folder / 'mmcv').mkdir(parents=True, exist_ok=True)
    return folder


def test_requirements_are_installed_again_when_one_changes(env, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(env, 'pip', lambda *arguments, **_: calls.append(arguments) or True)
    for name in env.REQUIREMENTS:
        (tmp_path / 'requirements' / f'{name}.txt').write_text('numpy\n')
    env.install_requirements()
    env.install_requirements()
    assert len(calls) == 1
    (tmp_path / 'requirements' / 'tested.txt').write_text('mmcv==2.1.0\nnumpy==2.1\n')
    env.install_requirements()
    assert len(calls) == 2


def test_user_s_index_is_left_alone(env, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(env, 'pip', lambda *arguments, **_: calls.append(arguments) or True)
    for name in env.REQUIREMENTS:
        (tmp_path / 'requirements' / f'{name}.txt').write_text('numpy\n')
    env.install_requirements()
    assert {part for part in calls[0] if str(part).startswith('-')} == {'-r', '-c'}


def test_failing_pip_leaves_no_stamp(env, tmp_path, monkeypatch):
    monkeypatch.setattr(env, 'pip', lambda *arguments, **_: False)
    for name in env.REQUIREMENTS:
        (tmp_path / 'requirements' / f'{name}.txt').write_text('numpy\n')
    with pytest.raises(env.SetupError):
        env.install_requirements()
    assert not list(env.STAMPS.glob('*'))


def test_package_is_installed_again_after_it_was_removed_or_its_version_rose(env, monkeypatch):
    calls = []
    link = site_packages(env) / '__editable__.mirrorla_mm-0.1.0.pth'
    monkeypatch.setattr(env, 'pip', lambda *_, **__: calls.append(link.touch()) or True)
    (env.ROOT / 'mirrorla_mm').mkdir()
    for name in ('setup.py', 'pyproject.toml', 'mirrorla_mm/version.py'):
        (env.ROOT / name).touch()
    env.install_package()
    env.install_package()
    assert len(calls) == 1
    link.unlink()
    env.install_package()
    (env.ROOT / 'mirrorla_mm' / 'version.py').write_text('1')
    env.install_package()
    assert len(calls) == 3


def test_ops_are_tried_again_after_torch_or_mmcv_changed(env, monkeypatch):
    monkeypatch.setattr(env, 'has_gpu', lambda: False)
    site = site_packages(env)
    (site / 'torch-2.13.0.dist-info').mkdir()
    library = site / 'mmcv' / '_ext.so'
    library.write_text('ops')
    env.mmcv_stamp().set()
    assert env.mmcv_stamp().is_set()
    os.utime(library, ns=(0, 0))
    assert not env.mmcv_stamp().is_set()
    env.mmcv_stamp().set()
    (site / 'torch-2.13.0.dist-info').rename(site / 'torch-2.14.0.dist-info')
    assert not env.mmcv_stamp().is_set()


# --- mmcv ----------------------------------------------------------------------------------------


def python_that(env, text):
    env.VENV_PYTHON = executable(env.ROOT / 'venv-python', text)


def test_probe_reports_the_last_line_of_a_failure(env):
    python_that(env, 'echo Traceback >&2; echo "ImportError: undefined symbol" >&2; exit 1')
    assert env.probe_ops('cpu') == 'ImportError: undefined symbol'
    python_that(env, 'exit 0')
    assert env.probe_ops('cpu') is None


def test_probe_runs_against_the_real_ops(env, monkeypatch):
    pytest.importorskip('mmcv.ops')
    env.VENV_PYTHON = sys.executable
    assert env.probe_ops('cpu') is None
    monkeypatch.setattr(env, 'PROBE', env.PROBE.replace('[0, 2]', '[0, 1]'))
    assert 'AssertionError' in env.probe_ops('cpu')


def wheel(env, name, folder='dist'):
    path = env.ROOT / folder / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def test_stale_wheels_are_passed_over_until_one_s_ops_run(env, monkeypatch, capsys):
    kept = wheel(env, 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl')
    cached = wheel(env, 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl', 'pip')
    other_python = wheel(env, 'mmcv-2.1.0-cp310-cp310-linux_x86_64.whl', 'pip')
    monkeypatch.setattr(env, 'output_of', lambda *command: f'{cached}\n{other_python}')
    tried = []

    def try_wheel(path, device):
        tried.append(str(path))
        return 'undefined symbol' if len(tried) == 1 else None

    monkeypatch.setattr(env, 'try_wheel', try_wheel)
    assert env.use_found_wheel(env.ROOT, 'cpu')
    assert tried == [str(kept), str(cached)]
    assert f'passing over {kept}: undefined symbol' in capsys.readouterr().out


def test_mmcv_is_compiled_where_no_wheel_works(env, monkeypatch):
    built = []
    monkeypatch.setattr(env, 'use_found_wheel', lambda *_: False)
    monkeypatch.setattr(env, 'build_mmcv', lambda folder, device, lock: built.append(folder.name))
    (site_packages(env) / 'torch-2.13.0+cpu.dist-info').mkdir()
    env.ensure_device('cpu', 0)
    assert built == ['mmcv-2.1.0-torch2.13.0+cpu-cpu']


def test_named_wheel_that_does_not_work_is_an_error_not_a_build(env, monkeypatch):
    monkeypatch.setattr(env, 'build_mmcv', lambda *_: pytest.fail('built'))
    monkeypatch.setenv('MMCV_WHEEL', 'missing.whl')
    with pytest.raises(env.SetupError, match='no such file'):
        env.ensure_device('cpu', 0)
    monkeypatch.setenv('MMCV_WHEEL', str(wheel(env, 'mmcv.whl')))
    monkeypatch.setattr(env, 'try_wheel', lambda *_: 'undefined symbol')
    with pytest.raises(env.SetupError, match='undefined symbol; unset MMCV_WHEEL'):
        env.ensure_device('cpu', 0)


def test_failing_cuda_build_goes_on_with_cpu_ops(env, monkeypatch, capsys):
    asked = []

    def ensure(device, lock):
        asked.append(device)
        if device == 'cuda':
            raise env.SetupError('compiling mmcv failed')

    monkeypatch.setattr(env, 'has_gpu', lambda: True)
    monkeypatch.setattr(env, 'device_for_ops', lambda: ('cuda', ''))
    monkeypatch.setattr(env, 'ensure_device', ensure)
    env.install_mmcv(0)
    env.install_mmcv(0)
    assert asked == ['cuda', 'cpu']
    assert 'segmentors use the GPU' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('gpu', 'torch_cuda', 'nvcc', 'device', 'said'),
    [
        (False, '', None, 'cpu', ''),
        (False, '', '13.0', 'cpu', ''),
        (True, '', '13.0', 'cpu', 'torch that your pip settings deliver'),
        (True, '13.0', None, 'cpu', 'no CUDA compiler (nvcc)'),
        (True, '13.0', '12.4', 'cpu', 'nvcc is 12.4 and torch wants CUDA 13.0'),
        (True, '13.0', '13.1', 'cuda', 'CUDA 13.1'),
    ],
)
def test_device_of_the_ops(env, gpu, torch_cuda, nvcc, device, said):
    chosen, remark = env.choose_device(gpu, torch_cuda, nvcc)
    assert chosen == device
    assert said in remark and bool(said) == bool(remark)
    assert '\n' not in remark


def test_nvcc_release_is_read_from_its_banner(env):
    banner = 'Cuda compilation tools, release 12.4, V12.4.131'
    assert env.nvcc_release(banner) == '12.4'
    assert env.nvcc_release(None) is None


def test_cpu_build_does_not_see_the_gpu(env, monkeypatch):
    monkeypatch.setattr(env, 'find_compiler', lambda: 'g++')
    cpu, cuda = (env.build_environment(device, 3) for device in ('cpu', 'cuda'))
    assert (cpu['FORCE_CUDA'], cpu['CUDA_VISIBLE_DEVICES']) == ('0', '')
    assert cuda['FORCE_CUDA'] == '1'
    assert cpu['MAX_JOBS'] == '3' and cpu['MMCV_WITH_OPS'] == '1'


def test_interrupted_source_is_kept(env, monkeypatch):
    monkeypatch.setattr(env, 'pip', lambda *_: pytest.fail('downloaded again'))
    folder = env.CACHE / 'mmcv'
    (folder / 'mmcv-2.1.0' / 'build').mkdir(parents=True)
    assert env.mmcv_source(folder) == folder / 'mmcv-2.1.0'
    (folder / 'mmcv-2.1.0' / 'build' / 'a.o').touch()
    assert '1 objects' in env.already_compiled(folder / 'mmcv-2.1.0')


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
def test_ninja_s_count_is_read(env, line, count):
    assert env.ninja_count(line) == count


def test_progress_says_what_is_left(env):
    assert env.progress_text(30, 120, 300) == (
        'compiled 30/120 objects, 5:00 elapsed, about 15 min left'
    )
    assert env.progress_text(1, 120, 200) == 'compiled 1/120 objects, 3:20 elapsed'
    assert env.progress_text(120, 120, 900) == 'compiled 120/120 objects, 15:00 elapsed'


def test_build_is_shown_logged_and_judged_by_its_status(env, capsys):
    python_that(
        env, 'echo "[1/2] c++ a"; echo "[2/2] c++ b"; echo "a.cpp:1: error: no" >&2; exit 3'
    )
    log = env.ROOT / 'build.log'
    with open(log, 'w') as lock:
        assert not env.compile_mmcv(env.ROOT, log, dict(os.environ), lock.fileno())
    assert 'compiled 2/2 objects' in capsys.readouterr().out
    assert env.build_failure(log) == 'a.cpp:1: error: no'


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('x.o: No space left on device', 'the disk is full'),
        ('c++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
        ('nothing of note', 'no error line'),
    ],
)
def test_build_failures_are_explained(env, text, said):
    log = env.ROOT / 'build.log'
    log.write_text(text)
    assert said in env.build_failure(log)


def test_interruption_ends_the_compilers(env):
    child_id = env.ROOT / 'child'
    python_that(env, f'sleep 60 & echo $! > {child_id}; echo "[1/2] c++ a"; wait')
    previous = signal.signal(signal.SIGTERM, env.terminate)

    def interrupt():
        while not child_id.exists() or not child_id.read_text().strip():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with open(env.ROOT / 'lock', 'w') as lock, pytest.raises(KeyboardInterrupt):
            env.compile_mmcv(env.ROOT, env.ROOT / 'log', dict(os.environ), lock.fileno())
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, previous)
    state = subprocess.run(
        ['ps', '-o', 'stat=', '-p', child_id.read_text().strip()], capture_output=True, text=True
    ).stdout
    assert not state or state.startswith('Z')


def test_second_set_up_waits_for_the_first(env, capsys):
    order = []
    entered = threading.Event()

    def first():
        with env.only_one():
            entered.set()
            time.sleep(0.2)
            order.append('first')

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with env.only_one():
        order.append('second')
    thread.join()
    assert order == ['first', 'second']
    assert 'waiting' in capsys.readouterr().out
