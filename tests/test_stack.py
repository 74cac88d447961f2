"""Which set of OpenMMLab packages is installed, and what is said where it does not work."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mirrorla_mm import stack

ROOT = Path(__file__).resolve().parents[1]
OPENMMLAB, ONEDL = stack.STACKS['openmmlab'], stack.STACKS['onedl']


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these distributions are installed, and no others."""

    def pretend(*names):
        monkeypatch.setattr(stack, '_installed', lambda name: name in names)
        stack.trouble.cache_clear()

    yield pretend
    monkeypatch.undo()
    stack.trouble.cache_clear()


def one_sentence(text):
    assert '\n' not in text and not text.endswith('.')
    return text


def test_stack_is_told_by_its_distributions(installed):
    installed(*OPENMMLAB.distributions)
    assert stack.find_stack() is OPENMMLAB
    installed(*ONEDL.distributions)
    assert stack.find_stack() is ONEDL


@pytest.mark.parametrize('packages', [(), ('mmdet',), ('onedl-mmcv',)])
def test_missing_stack_names_the_commands(installed, packages):
    installed(*packages)
    name = 'onedl' if packages == ('onedl-mmcv',) else 'openmmlab'
    assert one_sentence(stack.trouble()).endswith(
        f'run {stack.install_command(name)} && python -m mirrorla_mm.build_mmcv'
    )


def test_mixed_stacks_are_refused_with_the_commands_that_part_them(installed):
    installed('mmengine', 'onedl-mmengine', 'onedl-mmcv')
    with pytest.raises(stack.InstallationError) as error:
        stack.find_stack()
    text = one_sentence(str(error.value))
    assert 'pip uninstall -y mmengine onedl-mmengine onedl-mmcv && pip install' in text
    assert text.endswith('python -m mirrorla_mm.build_mmcv')


def test_setuptools_without_pkg_resources_is_named_where_it_is_needed(installed, monkeypatch):
    monkeypatch.setattr(stack, 'find_spec', lambda name: name == 'pip' or None)
    monkeypatch.setattr(stack, 'version', lambda name: '0.10.7')
    monkeypatch.setattr(stack, 'import_module', lambda name: None)
    installed(*OPENMMLAB.distributions)
    assert one_sentence(stack.trouble()).endswith("run pip install 'setuptools<82'")
    installed(*ONEDL.distributions)
    assert stack.trouble() is None


def test_ops_of_another_torch_are_named_with_the_reason(installed, monkeypatch):
    def load(name):
        if name == 'mmcv._ext':
            raise ImportError('_ext.so: undefined symbol: _ZN3c10')

    monkeypatch.setattr(stack, 'import_module', load)
    installed(*ONEDL.distributions)
    assert 'undefined symbol: _ZN3c10' in stack.trouble()
    assert one_sentence(stack.trouble()).endswith('run python -m mirrorla_mm.build_mmcv')


# --- The command that installs an extra ----------------------------------------------------------


@pytest.fixture
def came_from(monkeypatch):
    """Pretend that pip noted this of where the package came from."""

    def pretend(**record):
        found = SimpleNamespace(read_text=lambda name: json.dumps(record))
        monkeypatch.setattr(stack, 'distribution', lambda name: found)

    return pretend


def test_extras_are_installed_from_the_checkout_that_runs(came_from):
    came_from(url='file:///elsewhere', dir_info={})
    assert shlex.split(stack.install_command('export'))[2:] == [f'{ROOT}[export]']
    came_from(url=ROOT.as_uri(), dir_info=dict(editable=True))
    assert shlex.split(stack.install_command('export'))[2:] == ['-e', f'{ROOT}[export]']


@pytest.mark.parametrize(
    ('record', 'source'),
    [
        (dict(url='file:///me/mirrorla%20mm', dir_info={}), ' @ file:///me/mirrorla%20mm'),
        (
            dict(url='https://host/it.git', vcs_info=dict(vcs='git', commit_id='1234')),
            ' @ git+https://host/it.git@1234',
        ),
        ({}, ''),
    ],
)
def test_extras_are_installed_from_where_the_package_came(
    came_from, tmp_path, monkeypatch, record, source
):
    monkeypatch.setattr(stack, '__file__', str(tmp_path / 'site-packages/mirrorla_mm/stack.py'))
    came_from(**record)
    command = shlex.split(stack.install_command('onedl'))
    assert command == ['pip', 'install', f'mirrorla_mm[onedl]{source}']


def test_environment_without_pip_is_uv_s(installed, monkeypatch):
    monkeypatch.setattr(stack, 'find_spec', lambda name: None)
    assert stack.install_command('onedl').startswith('uv pip install ')
    installed('mmengine', 'onedl-mmengine')
    assert 'uv pip uninstall -y mmengine onedl-mmengine && uv pip install' in stack.trouble()


# --- What is shown -------------------------------------------------------------------------------

HIDE = """
import sys, importlib.metadata as metadata
real = metadata.version
def version(name):
    if name.startswith(('mm', 'onedl')) and name not in {there!r}:
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
sys.modules['mmengine'] = sys.modules['mmcv'] = None
"""


def run(tmp_path, *arguments, there=()):
    """Run Python where no OpenMMLab package can be imported, and only these are installed."""
    for name in there:
        folder = tmp_path / f'{name.replace("-", "_")}-1.0.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
    (tmp_path / 'sitecustomize.py').write_text(HIDE.format(there=there))
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'},
    )


SENTENCE = r'mirrorla_mm offers its operators .* run pip install .*build_mmcv\n'


def test_operators_alone_import_and_the_rest_says_what_to_run(tmp_path):
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    import mirrorla_mm
    from mirrorla_mm.ops import mirror_attention
(warning,) = caught
print(warning.message)
for name in ('registry', 'engine', 'backbones'):
    try:
        __import__('mirrorla_mm.' + name)
    except ImportError as error:
        assert str(error) == str(warning.message), error
    else:
        raise AssertionError(name)
"""
    done = run(tmp_path, '-c', code)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(SENTENCE, done.stdout)


@pytest.mark.parametrize('tool', ['train.py', 'inference.py', 'model_converters/backbone.py'])
def test_tools_say_once_what_to_run_without_a_traceback(tmp_path, tool):
    path = ROOT / 'tools' / tool
    done = run(tmp_path, path)
    assert done.returncode == 1
    assert re.fullmatch(rf'{path}:\d+: UserWarning: {SENTENCE}', done.stderr)
    done = run(tmp_path, '-W', 'ignore', path)
    assert done.returncode == 1
    assert re.fullmatch(f'error: {SENTENCE}', done.stderr)


def test_importing_the_registry_tells_a_script_by_its_status(tmp_path):
    done = run(tmp_path, '-c', 'import mirrorla_mm.registry')
    assert done.returncode == 1
    assert re.fullmatch(f'<string>:1: UserWarning: {SENTENCE}', done.stderr)


def test_program_that_comes_to_need_the_models_says_then_what_to_run(tmp_path):
    code = 'import mirrorla_mm\ndef main():\n    print("work")\n    import mmengine\nmain()'
    done = run(tmp_path, '-c', code)
    assert (done.returncode, done.stdout) == (1, 'work\n')
    assert re.fullmatch(f'<string>:1: UserWarning: {SENTENCE}error: {SENTENCE}', done.stderr)


def test_errors_of_another_kind_keep_their_traceback(tmp_path):
    done = run(tmp_path, '-c', 'import mirrorla_mm; raise ImportError("something else")')
    assert 'Traceback' in done.stderr and done.stderr.endswith('ImportError: something else\n')


def test_mixed_stacks_are_refused_by_the_command_too(tmp_path):
    command = '-m', 'mirrorla_mm.build_mmcv'
    done = run(tmp_path, *command, there=('mmengine', 'onedl-mmengine'))
    assert done.returncode == 1
    assert re.fullmatch(r'\[setup\] OpenMMLab packages .*build_mmcv\n', done.stderr)


def test_versions_to_build_are_those_that_were_tested():
    pins = (ROOT / 'requirements' / 'tested.txt').read_text().splitlines()
    for each in stack.STACKS.values():
        assert f'{each.mmcv}=={each.mmcv_version}' in pins


def test_configs_of_mmseg_are_found_by_its_name_in_the_stack():
    from mmengine.config.utils import MODULE2PACKAGE

    assert MODULE2PACKAGE['mmseg'] == stack.find_stack().mmseg
