"""Data loaders' workers end with the process they work for."""

import time

from mmengine.config import Config

from mirrorla_mm.engine.workers import end_workers_with_run
from tests import processes

# Samples do not travel in shared memory, and more of them are ready than a pipe holds.
SCRIPT = """
import sys, time
from pathlib import Path
from torch.utils.data import DataLoader
from mirrorla_mm.engine.workers import end_with_parent

class Samples:
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return bytes(10**6)

batches = iter(DataLoader(
    Samples(), num_workers=2, collate_fn=list, worker_init_fn=end_with_parent, prefetch_factor=8
))
next(batches)
time.sleep(0.5)
Path(sys.argv[1]).touch()
time.sleep(600)
"""


def test_workers_that_wait_for_room_in_a_queue_end_with_a_killed_process(tmp_path):
    script, ready = tmp_path / 'load.py', tmp_path / 'ready'
    script.write_text(SCRIPT)
    process = processes.start(tmp_path / 'log', script, ready)
    try:
        while not ready.exists():
            assert process.is_alive(), (tmp_path / 'log').read_text()
            time.sleep(0.05)
    finally:
        processes.kill(process)  # which waits for them


def test_a_users_own_initialiser_stays():
    own = dict(type='own')
    cfg = Config(
        dict(
            train_dataloader=dict(num_workers=2, disable_subprocess_warning=True),
            val_dataloader=dict(num_workers=2, worker_init_fn=own),
            test_dataloader=dict(num_workers=0),
        )
    )
    end_workers_with_run(cfg)
    assert cfg.train_dataloader == dict(
        num_workers=2, worker_init_fn=dict(type='mirrorla_mm.end_with_parent')
    )
    assert cfg.val_dataloader.worker_init_fn == own
    assert cfg.test_dataloader == dict(num_workers=0)
