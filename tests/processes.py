"""Processes of their own that start in a fraction of a second, as all imports are done once."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

TESTS = Path(__file__).resolve().parent

_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(['mmseg.datasets', 'mmseg.models', 'mirrorla_mm'])


def start(log: Path, script: Path, *arguments: object) -> BaseProcess:
    """Run a script in a new process that writes to a log."""
    job = dict(
        log=log,
        environment=dict(os.environ),
        folder=os.getcwd(),
        command=[str(script), *map(str, arguments)],
    )
    # By its path: this module's name may mean another one there.
    process = _context.Process(target=runpy.run_path, args=(__file__, {'job': job}, '__main__'))
    process.start()
    return process


def start_tool(log: Path, name: str, *arguments: object) -> BaseProcess:
    """Start ``tools/<name>.py`` with arguments."""
    return start(log, TESTS.parent / 'tools' / f'{name}.py', *arguments)


def kill(process: BaseProcess) -> None:
    """End a process as a power failure would, and make sure that its children end, too."""
    if not process.is_alive():
        return
    children = _children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    deadline = time.monotonic() + 3  # torch's workers look after their parent each 5 seconds
    while left := [child for child in children if Path(f'/proc/{child}').exists()]:
        if time.monotonic() > deadline:
            for child in left:
                os.kill(child, signal.SIGKILL)
            raise AssertionError('workers outlived their process')
        time.sleep(0.01)


def _children(pid: int | None) -> list[int]:
    return [
        int(child)
        for task in Path(f'/proc/{pid}/task').glob('*/children')
        for child in task.read_text().split()
    ]


def _work(log: Path, environment: dict, folder: str, command: list[str]) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    with log.open('ab', buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    runpy.run_path(str(TESTS / 'plain_configs.py'))['write_plainly']()
    multiprocessing.set_start_method('fork', force=True)  # as in a command line
    sys.argv = command
    runpy.run_path(command[0], run_name='__main__')


if __name__ == '__main__':
    _work(**globals()['job'])
