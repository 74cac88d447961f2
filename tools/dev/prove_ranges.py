"""Prove the version ranges that the requirements state: install each end, and try it.

    python tools/dev/prove_ranges.py              # every end
    python tools/dev/prove_ranges.py numpy        # those whose name begins so
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

from setup_env import ROOT, SetupError, key_of, python_version, run_command, say

FOLDER = ROOT / '.cache' / 'ranges'

MODELS = ('test_registry.py', 'test_stack.py', 'test_engine/test_checkpoint.py', 'test_heads')
OPERATORS = ('test_ops/test_reflection.py', 'test_ops/test_mirror_attention.py')
REFUSED = "run pip install 'setuptools<82'"


@dataclass(frozen=True)
class End:
    """One end of a range.

    Attributes:
        name: What it is the end of.
        python: Version of Python.
        extras: Extras of this package; the stack's among them.
        pins: Requirements that make it this end.
        tests: What runs, below ``tests/``.
        says: For an end that is refused: how the sentence ends.
    """

    name: str
    python: str = '3.11'
    extras: str = 'openmmlab'
    pins: tuple[str, ...] = ('torch==2.13.0',)
    tests: tuple[str, ...] = (*MODELS, *OPERATORS)
    says: str | None = None


ENDS = (
    End('torch, tested'),
    End('torch, oldest', pins=('torch==2.6.0',)),
    End('torch, newest', pins=('torch',)),
    End('torch, newest, with Python 3.13', python='3.13', pins=('torch',)),
    End('Python 3.10', python='3.10'),
    End('Python 3.12', python='3.12'),
    End('Python 3.13', python='3.13'),
    End('onedl with Python 3.11', extras='onedl'),
    End('onedl with Python 3.13', python='3.13', extras='onedl'),
    End('numpy, oldest', pins=('torch==2.13.0', 'numpy==1.26.*')),
    End('numpy, newest', pins=('torch==2.13.0', 'numpy')),
    End(
        'pillow, oldest',
        pins=('torch==2.13.0', 'pillow==10.1.*'),
        tests=('test_apis', 'test_demo_figures.py'),
    ),
    End('setuptools, newest with onedl', extras='onedl', pins=('torch==2.13.0', 'setuptools>=82')),
    End('setuptools, newest', pins=('torch==2.13.0', 'setuptools>=82'), says=REFUSED),
    End(
        'export, oldest torch',
        extras='openmmlab,export',
        pins=('torch==2.9.*',),
        tests=('test_export.py',),
    ),
    End(
        'triton, oldest torch',
        extras='openmmlab,triton',
        pins=('torch==2.10.*',),
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
        self.key = key_of(end, ROOT / 'setup.py', *files)

    def has_passed(self) -> bool:
        return self.record.exists() and self.record.read_text() == self.key

    def call(self, *command: str | Path) -> subprocess.CompletedProcess:
        words = [str(part) for part in command]
        with self.log.open('a') as log:
            log.write(f'$ {shlex.join(words)}\n')
            done = subprocess.run(words, cwd=self.folder, text=True, capture_output=True)
            log.write(done.stdout + done.stderr)
        return done

    def must(self, *command: str | Path) -> None:
        if self.call(*command).returncode:
            raise SetupError(f'the last command in {self.log} failed')

    def run(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        name = f'python{self.end.python}'
        if python_version(name) is None:
            raise SetupError(f'{name} is not on PATH')
        self.must(name, '-m', 'venv', 'env')
        package = f'{ROOT}[{self.end.extras},tests]'
        if self.end.says is None:
            self.must(self.python, '-m', 'pip', 'install', package, *self.end.pins)
        else:  # pip would refuse the pins beside the package, but takes them after it
            self.must(self.python, '-m', 'pip', 'install', package)
            self.must(self.python, '-m', 'pip', 'install', *self.end.pins)
        self.must(self.python, '-m', 'mirrorla_mm.build_mmcv')
        if self.end.says is None:
            tests = [ROOT / 'tests' / name for name in self.end.tests]
            self.must(self.python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *tests)
        elif self.end.says not in self.call(self.python, '-c', 'import mirrorla_mm').stderr:
            raise SetupError(f'it was not refused, see {self.log}')
        shutil.rmtree(self.folder / 'env')
        self.record.write_text(self.key)


def prove(ends: list[End]) -> None:
    """Try every end, and say at the end which ones failed."""
    failed = []
    for number, end in enumerate(ends, start=1):
        trial = Trial(end)
        start = time.monotonic()
        outcome = 'passed before'
        if not trial.has_passed():
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
            print('passed' if Trial(end).has_passed() else '      ', end.name, *end.pins)
        return 0
    if not ends:
        parser.error(f'no end begins so; --list names them: {", ".join(args.names)}')
    return run_command(lambda: prove(ends), shlex.join(['python', *sys.argv]))


if __name__ == '__main__':
    sys.exit(main())
