"""Where a figure comes from: the machine, the date and the commit."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

# Instructions that decide how fast a processor multiplies.
FLAGS = ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16', 'asimd', 'sve', 'bf16')
# Variables by which git takes another repository than that of the folder.
REPOSITORY = ('GIT_DIR', 'GIT_WORK_TREE')


def provenance() -> dict[str, str | None]:
    """Tell where results come from: ``machine``, ``date`` and ``commit``.

    Ask before they are made: a checkout may move on meanwhile.
    """
    return dict(
        machine=machine(),
        date=date.today().isoformat(),
        commit=commit_of(Path(__file__).resolve().parents[2]),
    )


def heading() -> str:
    """Date, machine and command, to be printed above what is measured."""
    return f'{date.today()}, {machine()}\n`{shlex.join(["python", *sys.argv])}`\n'


def machine() -> str:
    """Processor, threads and torch in one line."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if 'model name' in line]
        name = models[0].split(':')[1].strip() if models else name
        flags = [flag for flag in FLAGS if f' {flag} ' in cpuinfo.read_text().replace('\n', ' ')]
        name += f' ({", ".join(flags)})' if flags else ''
    if torch.cuda.is_available():
        name += f', {torch.cuda.get_device_name()}'
    return f'{name}, {torch.get_num_threads()} threads, torch {torch.__version__}'


def commit_of(checkout: Path) -> str | None:
    """Ask git for a checkout's commit.

    Args:
        checkout (Path): The folder; a folder within a checkout is none.

    Returns:
        str, optional: Abbreviated, with ``-dirty`` where tracked files differ from it. None where
        there is no checkout or no git.
    """
    if not (checkout / '.git').exists():
        return None
    command = ('git', '-C', str(checkout), 'describe', '--always', '--dirty', '--exclude=*')
    # A hook of git names its own repository, which is not always this one.
    environment = {key: value for key, value in os.environ.items() if key not in REPOSITORY}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
