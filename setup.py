"""Packaging of ``mirrorla_mm``, with the ``.mim`` folder that openmim looks for.

openmim runs ``<package>/.mim/tools/train.py`` on ``<package>/.mim/configs``. A wheel gets copies of
these folders, made in the build folder, never in the tree; an editable install gets links, so
that an edited config is the one that runs.
"""

import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
MIM_NAMES = ('configs', 'tools', 'model-index.yml', 'dataset-index.yml')
STACKS = ('openmmlab', 'onedl')  # one of the two, never both
EXTRAS = ('triton', 'tests', 'export', 'pretrain')


def requirements(name: str) -> list[str]:
    """Read ``requirements/<name>.txt`` without its comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith('#')]


def version() -> str:
    scope: dict = {}
    exec((ROOT / 'mirrorla_mm' / 'version.py').read_text(encoding='utf-8'), scope)
    return scope['__version__']


def fill_mim(mim: Path, *, link: bool) -> None:
    """Make the folder ``mim`` anew, with links to or copies of what openmim needs."""
    shutil.rmtree(mim, ignore_errors=True)
    mim.mkdir(parents=True)
    for source in (ROOT / name for name in MIM_NAMES):
        if not source.exists():
            continue
        target = mim / source.name
        if link:
            target.symlink_to(os.path.relpath(source, mim))
        elif source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(source, target)


class BuildWithMim(build_py):
    """Add ``.mim``: links in the tree for an editable install, else copies in the build folder."""

    def run(self) -> None:
        super().run()
        home = ROOT if self.editable_mode else Path(self.build_lib)
        fill_mim(home / 'mirrorla_mm' / '.mim', link=self.editable_mode)


class EditableWithMim(editable_wheel):
    """Tell openmim where an editable install lies.

    openmim joins site-packages and the first name in ``top_level.txt``. An editable install has
    nothing under that name in site-packages, but joined with an absolute path the path is left.
    """

    def run(self) -> None:
        if self.dist_info_dir is None:
            info = self.reinitialize_command('dist_info')
            info.output_dir = self.dist_dir
            info.ensure_finalized()
            info.run()
            self.dist_info_dir = info.dist_info_dir
        top_level = Path(self.dist_info_dir, 'top_level.txt')
        top_level.write_text(f'{ROOT / "mirrorla_mm"}\nmirrorla_mm\n')
        super().run()


extras = {name: requirements(name) for name in EXTRAS}
extras['all'] = sorted({line for lines in extras.values() for line in lines})
extras.update({name: requirements(name) for name in STACKS})
extras['mim'] = requirements('mminstall')

setup(
    name='mirrorla_mm',
    version=version(),
    description='MirrorLA and other vision linear attentions for mmdetection and mmsegmentation',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8')
    if (ROOT / 'README.md').exists()
    else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='linear attention, vision transformer, object detection, semantic segmentation',
    packages=find_packages(include=['mirrorla_mm', 'mirrorla_mm.*']),
    python_requires='>=3.10',
    install_requires=requirements('runtime'),
    extras_require=extras,
    cmdclass={'build_py': BuildWithMim, 'editable_wheel': EditableWithMim},
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    zip_safe=False,
)
