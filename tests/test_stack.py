"""Which set of OpenMMLab packages is installed, and what is said where it does not work."""

import re
import subprocess
import sys
from pathlib import Path

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
        f"run pip install 'mirrorla_mm[{name}]' && python -m mirrorla_mm.build_mmcv"
    )


def test_mixed_stacks_are_refused_with_the_commands_that_part_them(installed):
    installed('mmengine', 'onedl-mmengine', 'onedl-mmcv')
    with pytest.raises(stack.InstallationError) as error:
        stack.find_stack()
    text = one_sentence(str(error.value))
    assert 'pip uninstall -y mmengine onedl-mmengine onedl-mmcv && pip install' in text
    assert text.endswith('python -m mirrorla_mm.build_mmcv')


def test_setuptools_without_pkg_resources_is_named_where_it_is_needed(installed, monkeypatch):
    monkeypatch.setattr(stack, 'find_spec', lambda name: None)
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


def run(tmp_path, code, *distributions):
    """Run code where only the given distributions and no OpenMMLab package can be imported."""
    for name in distributions:
        folder = tmp_path / f'{name.replace("-", "_")}-1.0.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
    hide = (
        'import sys, importlib.metadata as metadata; real = metadata.version\n'
        'def version(name):\n'
        f'    if name.startswith(("mm", "onedl")) and name not in {distributions!r}:\n'
        '        raise metadata.PackageNotFoundError(name)\n'
        '    return real(name)\n'
        'metadata.version = version\n'
        f'sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n'
    )
    command = [sys.executable, '-c', hide + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)


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
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert one_sentence(done.stdout.strip()).endswith('python -m mirrorla_mm.build_mmcv')


@pytest.mark.parametrize('tool', ['train.py', 'inference.py', 'model_converters/backbone.py'])
def test_tools_say_what_to_run_without_a_traceback(tmp_path, tool):
    code = (
        'class Hide:\n'
        '    def find_spec(self, name, *_):\n'
        '        if name in ("mmengine", "mmcv"): raise ModuleNotFoundError(name, name=name)\n'
        'import runpy; sys.meta_path.insert(0, Hide())\n'
        f'runpy.run_path({str(ROOT / "tools" / tool)!r}, run_name="__main__")'
    )
    done = run(tmp_path, code)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(r'error: mirrorla_mm offers .* run pip install .*build_mmcv', last)


def test_errors_of_another_kind_keep_their_traceback(tmp_path):
    done = run(tmp_path, 'import mirrorla_mm; raise ImportError("something else")')
    assert 'Traceback' in done.stderr and done.stderr.endswith('ImportError: something else\n')


def test_mixed_stacks_are_refused_by_the_command_too(tmp_path):
    code = (
        'import runpy, warnings; warnings.simplefilter("ignore")\n'
        'runpy.run_module("mirrorla_mm.build_mmcv", run_name="__main__")'
    )
    done = run(tmp_path, code, 'mmengine', 'onedl-mmengine')
    assert done.returncode == 1
    assert re.fullmatch(r'\[setup\] OpenMMLab packages .*build_mmcv\n', done.stderr)


def test_versions_to_build_are_those_that_were_tested():
    pins = (ROOT / 'requirements' / 'tested.txt').read_text().splitlines()
    for each in stack.STACKS.values():
        assert f'{each.mmcv}=={each.mmcv_version}' in pins


def test_configs_of_mmseg_are_found_by_its_name_in_the_stack():
    from mmengine.config.utils import MODULE2PACKAGE

    assert MODULE2PACKAGE['mmseg'] == stack.find_stack().mmseg
