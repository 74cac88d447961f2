"""Prove the version ranges that the requirements state: install each end, and try it.

    python tools/dev/prove_ranges.py              # every end
    python tools/dev/prove_ranges.py newest       # those whose name begins so
    python tools/dev/prove_ranges.py --list

Each end gets an environment of its own, filled by README's lines, in which some of the tests run.
The first time this downloads tens of gigabytes and compiles mmcv for several versions of torch.
What passed is written down and not tried again until a requirement changes; logs lie beside it.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from setup_env import ROOT, STACKS, SetupError, key_of, python_version, run_command, say

FOLDER = ROOT / '.cache' / 'ranges'

MODELS = ('test_registry.py', 'test_stack.py', 'test_engine/test_checkpoint.py', 'test_heads')
OPERATORS = ('test_ops/test_reflection.py', 'test_ops/test_mirror_attention.py')
IMAGES = ('test_apis', 'test_demo_figures.py')
TESTED = 'torch==2.13.0'
OLDEST = ('torch==2.6.0', 'numpy==1.26.*', 'pillow==10.1.*')
NEWEST_SETUPTOOLS = ('--upgrade', 'setuptools')
REFUSED = "run pip install 'setuptools<82'"
# Without its name on the same line pip replaces what the newest of another package does not take.
PINNED = """
import sys
from importlib.metadata import version
from pip._vendor.packaging.requirements import Requirement
for pin in map(Requirement, sys.argv[1:]):
    found = version(pin.name)
    assert pin.specifier.contains(found), f'{pin} was replaced by {found}'
"""
VERSIONS = """
import platform
from importlib.metadata import distributions
wanted = {'torch', 'mmcv', 'onedl-mmcv', 'numpy', 'pillow', 'setuptools', 'triton', 'onnx'}
found = {each.metadata['Name'].lower(): each.version for each in distributions()}
print('Python', platform.python_version(), *(f'{n} {found[n]}' for n in sorted(wanted & {*found})))
"""


@dataclass(frozen=True)
class End:
    """One end of one range, or of several.

    Attributes:
        name: What it is the end of.
        python: Version of Python.
        extras: Extras of this package; mmcv is built where a stack is among them.
        pins: What is installed first, and stays: torch, and what else makes it this end.
        later: What is installed last, as a user does who upgrades it by hand.
        tests: What runs, below ``tests/``.
        says: For an end that is refused: how the sentence ends, in "run" and what mends it.
    """

    name: str
    python: str = '3.11'
    extras: str = 'openmmlab'
    pins: tuple[str, ...] = (TESTED,)
    later: tuple[str, ...] = ()
    tests: tuple[str, ...] = (*MODELS, *OPERATORS)
    says: str | None = None

    def builds_mmcv(self) -> bool:
        return not {*self.extras.split(',')}.isdisjoint(STACKS)


ENDS = (
    End('tested torch, Python 3.11'),
    End('tested torch, Python 3.12', python='3.12'),
    End('tested torch, Python 3.13', python='3.13'),
    End('newest torch, Python 3.11', pins=('torch',)),
    End('newest torch, Python 3.12', python='3.12', pins=('torch',)),
    End('newest torch, Python 3.13', python='3.13', pins=('torch',)),
    End('oldest torch, NumPy and Pillow', pins=OLDEST, tests=(*MODELS, *OPERATORS, *IMAGES)),
    End('oldest Python', python='3.10'),
    End('onedl, newest setuptools', extras='onedl', later=NEWEST_SETUPTOOLS),
    End('onedl, Python 3.13', python='3.13', extras='onedl'),
    End('newest setuptools', later=NEWEST_SETUPTOOLS, says=REFUSED),
    End('oldest NumPy', pins=(TESTED, 'numpy==1.26.*')),
    End(
        'export, oldest torch',
        extras='openmmlab,export',
        pins=('torch==2.9.*',),
        tests=('test_export.py',),
    ),
    End(
        'triton, oldest torch',
        extras='triton',
        # The interpreter of triton 3.6, which tests alone use, takes no NumPy from 2.4 on.
        pins=('torch==2.10.*', 'numpy<2.4'),
        tests=('test_ops/test_triton.py',),
    ),
)


class Trial:
    """One end, in an environment of its own."""

    def __init__(self, end: End) -> None:
        self.end = end
        self.folder = FOLDER / end.name.replace(', ', '-').replace(' ', '-')
        self.python = self.folder / 'env' / 'bin' / 'python'
        self.log = self.folder / 'log'
        self.record = self.folder / 'passed'
        files = sorted((ROOT / 'requirements').glob('*.txt'))
        self.key = key_of(end, ROOT / 'setup.py', ROOT / 'pyproject.toml', *files)

    def passed(self) -> str | None:
        """Return when it passed and with which versions, None where it has not."""
        if not self.record.exists():
            return None
        key, _, what = self.record.read_text().partition('\n')
        return what if key == self.key else None

    def call(self, *command: str | Path) -> tuple[int, str]:
        """Run a command, with what it prints in the log; return its status and what it printed."""
        words = [str(part) for part in command]
        with self.log.open('a+') as log:
            log.write(f'$ {shlex.join(words)}\n')
            log.flush()
            start = log.tell()
            done = subprocess.run(words, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT)
            log.seek(start)
            return done.returncode, log.read().strip()

    def must(self, *command: str | Path) -> str:
        status, printed = self.call(*command)
        if status:
            raise SetupError(f'the last command in {self.log} failed')
        return printed

    def install(self) -> None:
        name = f'python{self.end.python}'
        if python_version(name) is None:
            raise SetupError(f'{name} is not on PATH')
        self.must(name, '-m', 'venv', 'env')
        pip = self.python, '-m', 'pip', 'install'
        self.must(*pip, *self.end.pins)
        self.must(*pip, f'{ROOT}[{self.end.extras},tests]', *self.end.pins)
        if self.end.builds_mmcv():
            self.must(self.python, '-m', 'mirrorla_mm.build_mmcv')
        if self.end.later:
            self.must(*pip, *self.end.later)
        self.must(self.python, '-c', PINNED, *self.end.pins)

    def try_out(self) -> str:
        """Run its tests, or see it refused and mended; return what happened in a few words."""
        if self.end.says is None:
            tests = [ROOT / 'tests' / name for name in self.end.tests]
            # Without a stack there is no mmengine, which the tests' common fixtures import.
            options = () if self.end.builds_mmcv() else ('--noconftest',)
            pytest = self.python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider'
            return self.must(*pytest, *options, *tests).splitlines()[-1]
        if not self.call(self.python, '-c', 'import mirrorla_mm')[1].endswith(self.end.says):
            raise SetupError(f'it was not refused, see {self.log}')
        program, *arguments = shlex.split(self.end.says.removeprefix('run '))
        self.must(self.python.with_name(program), *arguments)
        # It ends with status 1 where the models do not work.
        self.must(self.python, '-c', 'import mirrorla_mm.registry')
        return 'refused; the command of the refusal mends it'

    def run(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.install()
        versions = self.must(self.python, '-c', VERSIONS)
        outcome = self.try_out()
        shutil.rmtree(self.folder / 'env')
        self.record.write_text(f'{self.key}\n{time.strftime("%Y-%m-%d")}, {versions}: {outcome}')


def prove(ends: list[End]) -> None:
    """Try every end, and say at the end which ones failed."""
    failed = []
    for number, end in enumerate(ends, start=1):
        trial = Trial(end)
        start = time.monotonic()
        outcome = 'passed before'
        if trial.passed() is None:
            say(f'{number}/{len(ends)} {end.name}: log in {trial.log}')
            try:
                trial.run()
                outcome = 'passed'
            except SetupError as error:
                outcome = f'FAILED, {error}'
                failed.append(end.name)
        minutes = (time.monotonic() - start) / 60
        say(f'{number}/{len(ends)} {end.name}: {outcome} ({minutes:.1f} min)')
    if failed:
        names = '; '.join(failed)
        raise SetupError(f'{len(failed)} of {len(ends)} ends failed ({names}): mend them')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('names', nargs='*', help='beginnings of the names of ends; default: all')
    parser.add_argument('--list', action='store_true', help='list the ends and what passed')
    args = parser.parse_args()
    ends = [end for end in ENDS if not args.names or end.name.startswith(tuple(args.names))]
    if args.list:
        for end in ends:
            print(f'{end.name}: {Trial(end).passed() or "not proved"}')
        return 0
    if not ends:
        parser.error(f'no end begins so; --list names them: {", ".join(args.names)}')
    return run_command(lambda: prove(ends), shlex.join(['python', *sys.argv]))


if __name__ == '__main__':
    sys.exit(main())
