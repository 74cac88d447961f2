import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import torch
from torch.autograd import forward_ad

from mirrorla_mm.ops import (
    BackendError,
    available_backends,
    backend,
    mirror_attention,
    use_backend,
)


@pytest.fixture
def fake(monkeypatch):
    """A backend that returns 7s and refuses batches of more than two."""
    monkeypatch.setattr(backend, '_backends', dict(backend._backends))
    backend.register_backend(
        'fake',
        backend.Backend(
            run=lambda q, *args, **kwargs: torch.full_like(q, 7),
            why_not=lambda q, *args, **kwargs: 'the batch is too large' if len(q) > 2 else None,
        ),
    )


def tokens(batch):
    return torch.rand(batch, 1, 4, 4)


def attend(q, x):
    return mirror_attention(q, x, x, feature_map='relu')


def run(batch):
    x = tokens(batch)
    return attend(x, x)


def test_transforms_and_forward_derivatives_are_seen():
    x, seen = tokens(1), []
    torch.func.vmap(lambda y: seen.append(backend.is_transformed(y)) or y)(x)
    with forward_ad.dual_level():
        seen += [backend.is_transformed(forward_ad.make_dual(x, x)), backend.is_transformed(x)]
    assert seen == [True, True, False] and not backend.is_transformed(x, None)


def test_the_fused_operator_refuses_derivatives_that_it_has_not():
    x = tokens(1)
    for call in (
        lambda: torch.func.jvp(lambda q: attend(q, x), (x,), (x,)),
        lambda: torch.func.grad(lambda q: attend(q, x).sum())(x),
    ):
        with use_backend('triton'), pytest.raises(BackendError, match='forward-mode derivatives'):
            call()


def test_reference_is_always_there():
    assert available_backends()[0] == 'torch'


def test_last_registered_backend_wins_and_falls_back(fake):
    assert (run(2) == 7).all()
    assert not (run(3) == 7).any()


def test_forcing_by_context_and_environment(fake, monkeypatch):
    with use_backend('torch'):
        assert not (run(1) == 7).any()
        with use_backend(None):
            assert (run(1) == 7).all()
    monkeypatch.setenv(backend.ENVIRONMENT_VARIABLE, 'torch')
    assert not (run(1) == 7).any()


def test_forcing_the_impossible_says_why(fake):
    with (
        use_backend('fake'),
        pytest.raises(RuntimeError, match="'fake' is forced .* batch is too large"),
    ):
        run(3)


def test_unknown_backend_is_named(monkeypatch):
    with pytest.raises(ValueError, match="Unknown backend 'cuda'"), use_backend('cuda'):
        pass
    monkeypatch.setenv(backend.ENVIRONMENT_VARIABLE, 'cuda')
    with pytest.raises(ValueError, match="Unknown backend 'cuda' .MIRRORLA_BACKEND"):
        run(1)


def test_an_empty_variable_forces_nothing(fake, monkeypatch):
    monkeypatch.setenv(backend.ENVIRONMENT_VARIABLE, '')
    assert (run(1) == 7).all()


def test_a_backend_that_is_passed_over_is_logged_once_with_the_reason(fake, monkeypatch):
    lines = []
    monkeypatch.setattr(backend.logger, 'debug', lambda text, *words: lines.append(text % words))
    backend._log_once.cache_clear()
    for _ in range(2):
        run(3)
    assert [line for line in lines if 'fake' in line] == [
        'Linear attention does not use fake: the batch is too large'
    ]


def test_a_tracer_gets_the_plain_form():
    seen = []

    def noted(x):
        seen.append((backend.symbolic(), backend.plain_form()))
        return x + 1

    torch.jit.trace(noted, torch.zeros(1), check_trace=False)
    noted(torch.zeros(1))
    assert seen == [(True, True), (False, False)]


def test_a_capture_is_looked_for_on_the_tensors_own_device(monkeypatch):
    current = [0]

    @contextmanager
    def device(wanted):
        current.append(wanted.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, 'device', device)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: current[-1] == 1)
    devices = [torch.device(name) for name in ('cuda:0', 'cuda:1', 'cpu')]
    assert [backend.capturing(x) for x in devices] == [False, True, False]


def test_a_forced_backend_is_the_threads_own():
    """Blocks of two threads that overlap leave nothing behind, in either."""
    entered, left, seen = threading.Event(), threading.Event(), []

    def other():
        with use_backend('lean'):
            entered.set()
            left.wait()
            seen.append(backend.forced_backend())
        seen.append(backend.forced_backend())

    thread = threading.Thread(target=other)
    with use_backend('torch'):
        thread.start()
        entered.wait()
        assert backend.forced_backend() == 'torch'
    left.set()
    thread.join()
    assert seen == ['lean', None]
    assert backend.forced_backend() is None


@pytest.mark.usefixtures('fresh_compiler')
def test_compiled_code_follows_the_forced_backend(fake):
    x = tokens(1)
    compiled = torch.compile(
        lambda x: mirror_attention(x, x, x, feature_map='relu'), backend='eager', fullgraph=True
    )
    with use_backend('torch'):
        assert not (compiled(x) == 7).any()
    with use_backend('fake'):
        assert (compiled(x) == 7).all()
    with use_backend('torch'):
        assert not (compiled(x) == 7).any()


def test_operators_need_torch_alone():
    code = (
        'import sys\n'
        'for name in ("mmengine", "mmcv", "mmdet", "mmseg", "numpy", "triton"):\n'
        '    sys.modules[name] = None\n'
        'import torch, mirrorla_mm.ops as ops\n'
        'x = torch.rand(1, 1, 4, 4)\n'
        'print(ops.mirror_attention(x, x, x, feature_map="relu").shape)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'torch.Size([1, 1, 4, 4])' in done.stdout, done.stderr
