"""Packaging of ``mirrorla_mm`` (pyproject.toml), with the ``.mim`` folder that openmim looks for.

openmim runs ``<package>/.mim/tools/train.py`` on ``<package>/.mim/configs``. A wheel gets copies of
these folders, made in the build folder, never in the tree; an editable install gets links, so
that an edited config is the one that runs.
"""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
MIM_NAMES = ('configs', 'tools', 'model-index.yml', 'dataset-index.yml')


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
            shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__', '.*'))
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


setup(cmdclass={'build_py': BuildWithMim, 'editable_wheel': EditableWithMim})
