"""A work dir takes one training at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.engine.work_dir import hold_work_dir, release_work_dir

HOLDER = """
import multiprocessing, os, sys, time
from mirrorla_mm.engine.work_dir import hold_work_dir
hold_work_dir(sys.argv[1])
worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
worker.start()
print(worker.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_second_training_is_refused_until_the_first_is_gone(tmp_path):
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDER, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = int(process.stdout.readline())
    try:
        with pytest.raises(UserError, match=rf'process {process.pid} on .*--work-dir'):
            hold_work_dir(tmp_path)
    finally:
        process.kill()
        process.wait()
    try:  # Its data loader may live on.
        assert Path(f'/proc/{worker}').exists()
        hold_work_dir(tmp_path)
        hold_work_dir(tmp_path)
        release_work_dir(tmp_path)
    finally:
        subprocess.run(['kill', '-9', str(worker)], check=False)


@pytest.mark.parametrize('name', [os.fsdecode(b'w\xff'), 'a\x1bb'])
def test_a_name_that_checkpoints_cannot_note_is_refused(tmp_path, name):
    with pytest.raises(UserError, match='no text.*--work-dir') as info:
        hold_work_dir(tmp_path / name / 'run')
    assert str(info.value).isprintable() and not list(tmp_path.iterdir())
