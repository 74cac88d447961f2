"""With glibc told to keep it, memory that is freed is there for the next step."""

import platform
import resource
import subprocess
import sys

import pytest

PASS = """
import resource, torch
from mirrorla_mm.engine.memory import keep_freed_memory
torch.set_num_threads(1)
{first}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20) + 1  # 64 MiB: more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(5)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='for glibc alone')
def test_pages_of_a_step_are_not_faulted_in_again():
    def fewest(first):
        command = [sys.executable, '-c', PASS.format(first=first)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    kept = fewest('assert keep_freed_memory()')
    assert kept < (1 << 20) / resource.getpagesize()
    assert kept < fewest('')  # of huge pages there are few


def test_another_c_library_is_told_nothing(monkeypatch):
    from mirrorla_mm.engine import memory

    monkeypatch.setattr(memory.ctypes, 'CDLL', lambda _: object())
    assert not memory.keep_freed_memory()
    monkeypatch.setattr(memory.os, 'name', 'nt')
    assert not memory.keep_freed_memory()
