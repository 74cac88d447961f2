"""Every attention in every host."""

import inspect

import pytest
import torch

from mirrorla_mm import backbones
from mirrorla_mm.analysis.compare import HOSTS
from mirrorla_mm.backbones import RAVLT, LinearPVT, LinearSwin, NaLaFormer
from mirrorla_mm.registry import ATTENTIONS, MODELS, build_attention
from tests.archs import TINY

METHODS = sorted(ATTENTIONS)


def ravlt(attn_cfg, cls=RAVLT):
    return cls(TINY, layout='linear', attn_cfg=attn_cfg)


def swin(attn_cfg):
    return LinearSwin(
        embed_dims=8,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 2, 4),
        attn_cfg=attn_cfg,
        layout='linear',
    )


def swin_windows(attn_cfg):
    return LinearSwin(
        embed_dims=8,
        depths=(2, 1, 1, 1),
        num_heads=(1, 2, 2, 4),
        attn_cfg=attn_cfg,
        linear_window=5,
    )


def pvt(attn_cfg):
    sizes = dict(embed_dims=8, num_layers=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), mlp_ratios=(2,) * 4)
    return LinearPVT(**sizes, attn_cfg=attn_cfg)


def reduced_pvt(attn_cfg):
    sizes = dict(embed_dims=8, num_layers=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), mlp_ratios=(2,) * 4)
    return LinearPVT(**sizes, attn_cfg=attn_cfg, linear_sr_ratios=(8, 4, 2, 1))


def nalaformer(attn_cfg):
    return ravlt(attn_cfg, NaLaFormer)


BUILDERS = [ravlt, nalaformer, swin, swin_windows, pvt, reduced_pvt]
every_method = pytest.mark.parametrize('method', METHODS)
# One host with every method and every host with one; the other pairs are many of their kind.
every_pair = pytest.mark.parametrize(
    ('build', 'method'),
    [
        pytest.param(
            build,
            method,
            marks=[pytest.mark.slow] * (build is not ravlt and method != 'MirrorAttention'),
            id=f'{build.__name__}-{method}',
        )
        for method in METHODS
        for build in BUILDERS
    ],
)


@every_pair
def test_trains_a_step_and_runs_on_any_size(build, method):
    model = build(dict(type=method)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    outputs = model(torch.randn(2, 3, 38, 69))
    assert [tuple(y.shape[-2:]) for y in outputs][0] in {(10, 18), (9, 17)}
    sum(y.square().mean() for y in outputs).backward()
    used = [p for p in model.parameters() if p.grad is not None]
    assert all(p.grad.isfinite().all() for p in used)
    optimizer.step()
    x = torch.randn(1, 3, 96, 96)
    expected = model.eval()(x)
    assert [y.shape[-1] for y in expected] == [24, 12, 6, 3]
    with torch.no_grad():  # Without gradients, faster paths are taken.
        outputs = model(x)
    for ours, theirs in zip(outputs, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@every_pair
def test_half_precision_trains_without_nan(build, method):
    model = build(dict(type=method)).train()
    for dtype in (torch.bfloat16, torch.float16):
        model.zero_grad()
        with torch.autocast('cpu', dtype=dtype):
            outputs = model(torch.randn(2, 3, 32, 32))
            loss = sum(y.float().square().mean() for y in outputs)
        loss.backward()
        assert all(y.isfinite().all() for y in outputs)
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.slow
@pytest.mark.usefixtures('fresh_compiler')
@every_method
def test_compiled_is_the_same(method):
    """Captured as a whole: a graph break would raise."""
    module = build_attention(dict(type=method), embed_dims=16, num_heads=2).eval()
    # Inductor compiles for seconds, so one method has to do. Without decompositions aot_eager
    # plans ELU's gradient with strides that the kernel does not give (torch 2.13).
    backend = 'inductor' if method == 'ELUAttention' else 'aot_eager_decomp_partition'
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    x = torch.randn(2, 15, 16, requires_grad=True)
    out, expected = compiled(x, (3, 5)), module(x, (3, 5))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (out, expected)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures('fresh_compiler')
@pytest.mark.parametrize('build', [swin, pvt], ids=lambda f: f.__name__)
def test_hosts_compile(build):
    model = build(dict(type='FLattenAttention')).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        compiled, expected = torch.compile(model, backend='aot_eager')(x), model(x)
    for ours, theirs in zip(compiled, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_each_method_makes_a_difference():
    """No two methods give the same map: a row of the comparison is the method it names."""
    outputs = {}
    for method in METHODS:
        torch.manual_seed(0)
        model = swin(dict(type=method)).eval()
        with torch.no_grad():
            outputs[method] = model(torch.ones(1, 3, 64, 64).cumsum(-1) / 64)[0]
    names = list(outputs)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert not torch.allclose(outputs[first], outputs[second]), (first, second)


def test_the_comparison_and_this_file_know_every_host_that_takes_an_attention():
    classes = {getattr(backbones, name) for name in backbones.__all__}
    hosts = {c for c in classes if {'arch', 'attn_cfg'} <= inspect.signature(c).parameters.keys()}
    assert hosts == {type(build(dict(type='ReLUAttention'))) for build in BUILDERS}
    assert hosts == {MODELS.get(settings['type']) for settings in HOSTS.values()}
