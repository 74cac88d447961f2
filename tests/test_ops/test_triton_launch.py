"""The path from a call to the driver, which the interpreter and ahead-of-time compiles go round.

Tuner, binder, specialisation, cache on disk and compiler run in processes of their own, on a
driver that stands for a GPU; ``kernel_report.py --launch`` runs more head dimensions, dtypes and
layouts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mirrorla_mm.ops import fused

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(fused.TRITON_REASON is not None, reason=str(fused.TRITON_REASON)),
    pytest.mark.skipif(
        os.environ.get('TRITON_INTERPRET') == '1', reason='interpreted kernels are not launched'
    ),
]
PROGRAM = Path(__file__).with_name('launch_program.py')
KERNELS = 8  # four forwards, four backwards


def run(cache: Path, *cases: dict) -> list:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), json.dumps(cases)],
        env={**os.environ, 'TRITON_CACHE_DIR': str(cache)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_tuned_once_in_this_process_and_never_in_the_next(tmp_path):
    case = dict(channels=32, dtype='bfloat16', layout='packed')
    longer, elsewhere = dict(grid=(33, 25)), dict(layout='channels first')
    cases = (case | dict(calls=2), case | longer, case | elsewhere)
    (first, second), (other_length,), (other_layout,) = run(tmp_path, *cases)
    assert first['timed'] > 0 and len(first['kernels']) > KERNELS
    for again in (second, other_length):  # another length of the same kind
        assert again['timed'] == 0 and len(again['kernels']) == KERNELS
    assert other_layout['timed'] > 0
    for calls in run(tmp_path, *cases):
        assert all(call['timed'] == 0 for call in calls), 'what tuning found was not kept on disk'


def test_every_kind_of_input_is_launched(tmp_path):
    cases = [
        dict(channels=11, dtype='float16', layout='channels first', capability=89, rope=False),
        dict(channels=16, dtype='bfloat16', layout='one tensor', rope=False),
        dict(channels=96, dtype='float32', layout='one tensor', capability=80, rope=False),
    ]
    limits = fused.ANY_SHARED_MEMORY, fused.ANY_SHARED_MEMORY, fused.WIDE_SHARED_MEMORY
    found = run(tmp_path, *(case | dict(calls=2) for case in cases))
    for (call, again), limit in zip(found, limits, strict=True):
        assert not call['warnings'] and not again['timed'] and again['shared'] <= limit
        assert KERNELS <= len(again['kernels']) <= KERNELS + 1  # wide float32 heads take one more


def test_the_plain_peer_of_the_benchmark_is_launched(tmp_path):
    case = dict(channels=32, dtype='bfloat16', layout='plain peer', calls=2)
    ((first, again),) = run(tmp_path, case)
    assert first['timed'] > 0 and not again['timed'] and len(again['kernels']) == 4
    assert again['shared'] <= fused.ANY_SHARED_MEMORY


def test_first_calls_of_several_threads_at_once(tmp_path):
    case = dict(channels=32, dtype='bfloat16', layout='packed', rope=False, threads=3, calls=2)
    ((first, second),) = run(tmp_path, case)
    assert first['timed'] > 0 and not second['timed'] and len(second['kernels']) == 3 * KERNELS


def test_a_kernel_too_large_for_the_gpu_falls_back_with_one_warning(tmp_path):
    case = dict(channels=96, dtype='float32', layout='packed', capability=89, calls=2)
    ((first, second),) = run(tmp_path, case)
    assert len(first['warnings']) == 1 and 'does not fit' in first['warnings'][0]
    assert not second['warnings'] and not second['kernels']
