"""The contents of the wheel, the source distribution and an editable install."""

import ast
import shutil
import subprocess
import sys
import tarfile
import zipfile
from contextlib import suppress
from email import message_from_string
from importlib.metadata import (
    PackageNotFoundError,
    distribution,
    packages_distributions,
    requires,
)
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import mirrorla_mm
from mirrorla_mm.stack import STACKS, find_stack

ROOT = Path(__file__).resolve().parents[1]
PARTS = ('mirrorla_mm', 'configs', 'tools', 'requirements')
FILES = ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE', 'README.md', 'CHANGELOG.md')

pytest.importorskip('setuptools.build_meta')
pytestmark = pytest.mark.skipif(
    not (ROOT / 'setup.py').exists(), reason='the tests run outside a checkout'
)


def listing(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}


def build(tree, kind, out):
    """Build with setuptools' own hooks, as pip does; return the file that came out."""
    out.mkdir(parents=True, exist_ok=True)
    code = f'from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))'
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], cwd=tree, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """A copy of what a checkout holds."""
    folder = tmp_path_factory.mktemp('checkout')
    ignore = shutil.ignore_patterns('__pycache__', '.mim')
    for name in PARTS:
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for path in [*(ROOT / name for name in FILES), *ROOT.glob('*-index.yml')]:
        if path.exists():
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope='module')
def wheel(tree):
    before = listing(tree)
    path = build(tree, 'wheel', tree.parent / 'dist')
    shutil.rmtree(tree / 'build', ignore_errors=True)
    shutil.rmtree(tree / 'mirrorla_mm.egg-info', ignore_errors=True)
    assert listing(tree) == before, 'a wheel leaves nothing in the tree'
    return path


@pytest.fixture(scope='module')
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def metadata(unpacked):
    (info,) = unpacked.glob('*.dist-info')
    return message_from_string((info / 'METADATA').read_text())


def test_wheel_holds_everything_openmim_looks_for(unpacked, tree):
    mim = unpacked / 'mirrorla_mm' / '.mim'
    assert listing(mim / 'configs') == listing(tree / 'configs')
    assert listing(mim / 'tools') == listing(tree / 'tools')
    assert {'tools/train.py', 'tools/test.py', 'model-index.yml'} <= listing(mim)


def test_wheel_holds_the_package_and_nothing_beside_it(unpacked, tree):
    package = unpacked / 'mirrorla_mm'
    shipped = {name for name in listing(package) if not name.startswith('.mim')}
    assert shipped == listing(tree / 'mirrorla_mm')
    assert {path.name for path in unpacked.iterdir() if path.suffix != '.dist-info'} == {
        'mirrorla_mm'
    }


def test_metadata_names_the_distribution(unpacked):
    found = metadata(unpacked)
    assert found['Name'] == 'mirrorla_mm'
    assert found['Version'] == mirrorla_mm.__version__
    assert found['Requires-Python'] == '>=3.10'
    assert 'Apache-2.0' in (found['License-Expression'] or found['License'])
    extras = set(found.get_all('Provides-Extra'))
    assert {'triton', 'tests', 'export', 'pretrain', 'all', 'mim', *STACKS} <= extras


def requirements_of(unpacked, extra=''):
    """Names of what an install with this extra, or with none, asks for beside the package."""
    found = [Requirement(line) for line in metadata(unpacked).get_all('Requires-Dist')]
    return {
        canonicalize_name(requirement.name)
        for requirement in found
        if ('extra ==' in str(requirement.marker)) == bool(extra)
        and (not requirement.marker or requirement.marker.evaluate({'extra': extra}))
    }


def test_package_alone_asks_for_no_stack(unpacked):
    names = requirements_of(unpacked)
    assert 'torch' in names
    assert not names & {'openmim', 'setuptools', 'torchvision', 'triton'}
    for stack in STACKS.values():
        assert not names & set(stack.distributions)


def imported_names(folder):
    """Top-level names of what a package imports, at its beginning or later."""
    for path in folder.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition('.')[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.partition('.')[0]


def test_every_import_is_asked_for(tree, unpacked):
    stack = find_stack()
    asked = {canonicalize_name(name) for name in stack.distributions}
    for extra in ('', stack.name, 'all'):
        asked |= requirements_of(unpacked, extra)
    lines = [line for part in stack.distributions for line in requires(part) or ()]
    asked |= {canonicalize_name(Requirement(line).name) for line in lines}
    providers = packages_distributions()
    for name in {*imported_names(tree / 'mirrorla_mm')} - {*sys.stdlib_module_names}:
        found = {canonicalize_name(each) for each in providers.get(name, [name])}
        assert name == 'mirrorla_mm' or found & asked, name


@pytest.mark.parametrize('name', STACKS)
def test_stack_s_extra_asks_for_its_packages_and_for_none_of_the_other(unpacked, name):
    (other,) = set(STACKS) - {name}
    names = requirements_of(unpacked, name)
    assert set(STACKS[name].distributions) - names == {STACKS[name].mmcv}, 'mmcv is built'
    assert not names & set(STACKS[other].distributions)
    assert ('setuptools' in names) == STACKS[name].needs_pkg_resources
    assert not requirements_of(unpacked, 'all') & set(STACKS[name].distributions)


def test_all_holds_every_extra_but_the_stacks_and_mmcv(unpacked):
    extras = {*metadata(unpacked).get_all('Provides-Extra')} - {'all', 'mim', *STACKS}
    names = set().union(*(requirements_of(unpacked, extra) for extra in extras))
    assert requirements_of(unpacked, 'all') == names


def tested_pins():
    lines = (ROOT / 'requirements' / 'tested.txt').read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith('#')]


def test_tested_set_installs_on_every_python_3_11():
    """Debian 12 has 3.11.2, and some packages ask for a later patch release."""
    first = '3.11.0'
    for pin in tested_pins():
        with suppress(PackageNotFoundError):
            found = distribution(pin.name)
            meant = not pin.marker or pin.marker.evaluate({'python_full_version': first})
            if meant and found.version in pin.specifier:
                assert SpecifierSet(found.metadata['Requires-Python'] or '').contains(first), pin


def test_every_range_holds_the_tested_version(unpacked):
    tested = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in tested_pins()
    }
    for line in metadata(unpacked).get_all('Requires-Dist'):
        requirement = Requirement(line)
        if requirement.name in ('mmpretrain', 'diffusers'):  # in environments of their own
            continue
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), line


@pytest.mark.slow
def test_source_distribution_builds_the_same_wheel(tree, wheel, tmp_path):
    sdist = build(tree, 'sdist', tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter='data')
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    again = build(folder, 'wheel', tmp_path / 'dist')
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_editable_install_links_into_the_tree_where_openmim_looks(tree, tmp_path):
    pkg_resources = pytest.importorskip('pkg_resources')
    checkout = tmp_path / 'checkout'
    shutil.copytree(tree, checkout)
    site = tmp_path / 'site-packages'
    zipfile.ZipFile(build(checkout, 'editable', tmp_path / 'dist')).extractall(site)

    (installed,) = pkg_resources.find_distributions(str(site))
    module = installed.get_metadata('top_level.txt').split('\n')[0]  # as openmim does
    package = Path(installed.location, module)
    assert package == checkout / 'mirrorla_mm'
    assert {path.name for path in checkout.iterdir()} - {path.name for path in tree.iterdir()} <= {
        'build',
        'mirrorla_mm.egg-info',
    }
    assert (package / '.mim' / 'tools').is_symlink()
    assert not (package / '.mim' / 'configs').readlink().is_absolute()
    assert (package / '.mim' / 'tools' / 'train.py').samefile(checkout / 'tools' / 'train.py')


@pytest.mark.slow
def test_editable_install_imports_the_tree(tree, tmp_path):
    checkout = tmp_path / 'checkout'
    shutil.copytree(tree, checkout)
    site = tmp_path / 'site-packages'
    zipfile.ZipFile(build(checkout, 'editable', tmp_path / 'dist')).extractall(site)
    code = (
        f'import site; site.addsitedir({str(site)!r}); import importlib.util;'
        'print(importlib.util.find_spec("mirrorla_mm").origin)'
    )
    # -S: a checkout that is installed in this environment must not be found instead.
    done = subprocess.run(
        [sys.executable, '-S', '-c', code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(checkout / 'mirrorla_mm' / '__init__.py')], done.stderr


def test_lock_is_of_these_requirements(unpacked):
    tomllib = pytest.importorskip('tomllib')  # Python 3.11
    locked = tomllib.loads((ROOT / 'uv.lock').read_text())['package']
    (ours,) = (found for found in locked if found['name'] == 'mirrorla-mm')
    lines = [Requirement(line) for line in metadata(unpacked).get_all('Requires-Dist')]
    assert {
        (found['name'], SpecifierSet(found.get('specifier', '')))
        for found in ours['metadata']['requires-dist']
    } == {(canonicalize_name(line.name), line.specifier) for line in lines}, 'run uv lock'


def test_lock_holds_the_tested_torch_and_mmcv():
    tomllib = pytest.importorskip('tomllib')  # Python 3.11
    tested = set((ROOT / 'requirements' / 'tested.txt').read_text().splitlines())
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['uv']
    assert set(settings['constraint-dependencies']) <= tested
    assert [found['version'] for found in settings['dependency-metadata']] == [
        STACKS['openmmlab'].mmcv_version
    ]
    locked = tomllib.loads((ROOT / 'uv.lock').read_text())
    versions = {f'{found["name"]}=={found.get("version")}' for found in locked['package']}
    assert set(settings['constraint-dependencies']) <= versions
