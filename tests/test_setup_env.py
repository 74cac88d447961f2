"""The decisions of ``make setup``, without installing anything; the build has its own tests."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPT = Path(__file__).resolve().parents[1] / 'tools' / 'dev' / 'setup_env.py'


def is_ours(name):
    return name.partition('.')[0] == 'mirrorla_mm'


@pytest.fixture
def env(tmp_path, monkeypatch):
    """The script as a module whose folders lie in ``tmp_path``."""
    # It puts a bare package in place of ours.
    ours = {name: sys.modules.pop(name) for name in [*sys.modules] if is_ours(name)}
    spec = importlib.util.spec_from_file_location('setup_env', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'setup_env', module)
    spec.loader.exec_module(module)
    for name in filter(is_ours, [*sys.modules]):
        del sys.modules[name]
    sys.modules.update(ours)
    monkeypatch.setattr(module, 'ROOT', tmp_path)
    monkeypatch.setattr(module, 'VENV', tmp_path / '.venv')
    monkeypatch.setattr(module, 'STAMPS', tmp_path / '.venv' / 'setup-stamps')
    monkeypatch.setattr(module, 'CONSTRAINTS', tmp_path / 'requirements' / 'tested.txt')
    for name in ('STACK', 'MMCV_WHEEL'):
        monkeypatch.delenv(name, raising=False)
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


# --- The Python ----------------------------------------------------------------------------------


def test_python_of_a_tested_version_is_found_wherever_it_stands(env, monkeypatch):
    versions = {sys.executable: (3, 14), 'python3.11': None, 'python3.13': (3, 13)}
    monkeypatch.setattr(env, 'python_version', versions.get)
    assert env.find_python() == 'python3.13'
    monkeypatch.setattr(env, 'python_version', {sys.executable: (3, 12)}.get)
    assert env.find_python() == sys.executable


def test_wrong_python_names_what_is_needed_and_what_was_found(env, monkeypatch):
    monkeypatch.setattr(env, 'python_version', {'python3': (3, 9)}.get)
    with pytest.raises(env.SetupError) as error:
        env.find_python()
    assert 'Python 3.11 to 3.13 is needed (found: 3.9)' in one_line(error)


@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
def test_make_without_a_new_python_says_what_is_needed():
    command = ['make', 'setup', 'PYTHON=false']
    done = subprocess.run(command, cwd=SCRIPT.parents[2], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        '[setup] Python 3.11 to 3.13 is needed: put one on PATH, then run make setup'
    )


def test_version_of_a_real_and_of_a_missing_python(env):
    assert env.python_version(sys.executable) == sys.version_info[:2]
    assert env.python_version('no-such-python') is None


def test_missing_venv_module_is_named_for_the_python_at_hand(env, tmp_path):
    python = executable(tmp_path / 'python', 'case "$*" in *ensurepip*) exit 1;; esac; echo 3 12')
    with pytest.raises(env.SetupError) as error:
        env.check_venv_module(str(python))
    assert 'python3.12-venv' in one_line(error)


def test_environment_of_an_untested_python_is_not_touched(env, monkeypatch):
    monkeypatch.setattr(env, 'python_version', lambda python: (3, 14))
    with pytest.raises(env.SetupError, match=r'rm -rf \.venv'):
        env.make_venv('python3.11')


@pytest.mark.parametrize('then', [None, 'make setup STACK=onedl'])
def test_command_ends_with_one_line_and_a_failing_status(env, monkeypatch, capsys, then):
    def fail():
        raise env.SetupError('gone: bring it back', then)

    monkeypatch.setattr(env, 'find_python', fail)
    previous = signal.getsignal(signal.SIGTERM)
    try:
        assert env.run_command(env.set_up, 'make setup') == 1
    finally:
        signal.signal(signal.SIGTERM, previous)
    said = capsys.readouterr().err
    assert said == f'[setup] gone: bring it back, then run {then or "make setup"}\n'


# --- The stack -----------------------------------------------------------------------------------


def test_stack_is_openmmlab_s_unless_another_is_named_or_there(env, monkeypatch):
    assert env.chosen_stack().name == 'openmmlab'
    monkeypatch.setenv('STACK', 'onedl')
    assert env.chosen_stack().name == 'onedl'
    (site_packages(env) / 'onedl_mmengine-0.10.12.dist-info').mkdir()
    monkeypatch.setenv('STACK', '')
    assert env.chosen_stack().name == 'onedl'


def test_stack_of_an_environment_is_not_changed(env, monkeypatch):
    (site_packages(env) / 'mmengine-0.10.7.dist-info').mkdir()
    monkeypatch.setenv('STACK', 'onedl')
    with pytest.raises(env.SetupError) as error:
        env.chosen_stack()
    assert one_line(error).endswith('rm -rf .venv')
    assert error.value.then == 'make setup STACK=onedl'
    (site_packages(env) / 'onedl_mmengine-0.10.12.dist-info').mkdir()
    with pytest.raises(env.SetupError, match='holds the openmmlab and the onedl packages'):
        env.chosen_stack()


def test_unknown_stack_names_those_there_are(env, monkeypatch):
    monkeypatch.setenv('STACK', 'mmlab')
    with pytest.raises(env.SetupError, match='STACK=mmlab is none of openmmlab, onedl'):
        env.chosen_stack()


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


@pytest.fixture
def calls(env, tmp_path, monkeypatch):
    """Calls of pip, none of which is made."""
    found = []
    monkeypatch.setattr(
        env.Environment, 'pip', lambda _, *arguments, **__: found.append(arguments) or True
    )
    for name in (*env.REQUIREMENTS, 'openmmlab'):
        (tmp_path / 'requirements' / f'{name}.txt').write_text('numpy\n')
    return found


def test_requirements_are_installed_again_when_one_changes(env, calls, tmp_path):
    env.install_requirements(env.OPENMMLAB)
    env.install_requirements(env.OPENMMLAB)
    assert len(calls) == 1
    (tmp_path / 'requirements' / 'tested.txt').write_text('mmcv==2.1.0\nnumpy==2.1\n')
    env.install_requirements(env.OPENMMLAB)
    assert len(calls) == 2
    (site_packages(env) / 'setuptools-82.0.0.dist-info').mkdir()  # upgraded by hand
    env.install_requirements(env.OPENMMLAB)
    assert len(calls) == 3


def test_user_s_index_is_left_alone(env, calls):
    env.install_requirements(env.OPENMMLAB)
    assert {part for part in calls[0] if str(part).startswith('-')} == {'-r', '-c'}


def test_failing_pip_leaves_no_stamp(env, tmp_path, monkeypatch):
    monkeypatch.setattr(env.Environment, 'pip', lambda *arguments, **_: False)
    for name in (*env.REQUIREMENTS, 'openmmlab'):
        (tmp_path / 'requirements' / f'{name}.txt').write_text('numpy\n')
    with pytest.raises(env.SetupError):
        env.install_requirements(env.OPENMMLAB)
    assert not list(env.STAMPS.glob('*'))


def test_package_is_installed_again_after_it_was_removed_or_its_version_rose(env, monkeypatch):
    calls = []
    link = site_packages(env) / '__editable__.mirrorla_mm-0.1.0.pth'
    monkeypatch.setattr(env.Environment, 'pip', lambda *_, **__: calls.append(link.touch()) or True)
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
    env.mmcv_stamp(env.OPENMMLAB).set()
    assert env.mmcv_stamp(env.OPENMMLAB).is_set()
    os.utime(library, ns=(0, 0))
    assert not env.mmcv_stamp(env.OPENMMLAB).is_set()
    env.mmcv_stamp(env.OPENMMLAB).set()
    (site / 'torch-2.13.0.dist-info').rename(site / 'torch-2.14.0.dist-info')
    assert not env.mmcv_stamp(env.OPENMMLAB).is_set()


# --- The ends of the ranges ----------------------------------------------------------------------


def run_ranges(code, *arguments):
    command = [sys.executable, '-c', f'import prove_ranges as ranges\n{code}', *arguments]
    return subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, text=True)


def test_tests_of_every_end_of_a_range_exist():
    done = run_ranges(
        'names = {name for end in ranges.ENDS for name in end.tests}\n'
        'print(*(name for name in names if not (ranges.ROOT / "tests" / name).exists()))'
    )
    assert (done.returncode, done.stdout.strip()) == (0, ''), done.stderr


def test_an_end_whose_versions_were_replaced_does_not_pass():
    installed = pytest.__version__.split('.')[0]
    kept = run_ranges('exec(ranges.PINNED)', f'pytest=={installed}.*', 'torch')
    assert kept.returncode == 0, kept.stderr
    replaced = run_ranges('exec(ranges.PINNED)', 'torch', f'pytest!={installed}.*')
    assert replaced.stderr.strip().endswith(
        f'pytest!={installed}.* was replaced by {pytest.__version__}'
    )


# --- Where else it is called ---------------------------------------------------------------------


def test_container_and_workflow_set_up_as_a_checkout_does(env):
    root = SCRIPT.parents[2]
    assert 'make setup STACK=${STACK}' in (root / 'Dockerfile').read_text()
    workflow = yaml.safe_load((root / '.github' / 'workflows' / 'test.yml').read_text())
    job = workflow['jobs']['test']
    matrix = job['strategy']['matrix']
    assert matrix['python'] == [env.version_text(version) for version in env.PYTHONS]
    assert matrix['stack'] == [*env.STACKS]
    commands = [step['run'] for step in job['steps'] if 'run' in step]
    assert commands == ['make setup PYTHON=python STACK=${{ matrix.stack }}', 'make test']
