"""Every way of a product gives what torch's own gives, and deploy mode takes the fastest."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode

from mirrorla_mm.ops import products, use_backend
from mirrorla_mm.ops.products import FastLinear, Linear, affine_of, linear

AFFINE_WAYS = [products.matrix, products.convolution, products.packed]
READ_WAYS = [products.read_by_diagonal, products.read_by_convolution]


def fast_linear(*sizes, **options):
    layer = nn.Linear(*sizes, **options)
    layer.__class__ = FastLinear
    return layer


def heads(batch, number, tokens, dim):
    """As attention makes them: views of (B, N, C)."""
    return torch.randn(batch, tokens, number, dim).transpose(1, 2)


@pytest.mark.parametrize('way', AFFINE_WAYS)
@pytest.mark.parametrize('bias', [True, False])
@torch.no_grad()
def test_ways_of_a_linear_layer_agree(way, bias):
    layer, x = nn.Linear(24, 40, bias=bias), torch.randn(7, 24)
    run = way(layer.weight, layer.bias)
    torch.testing.assert_close(run(x), layer(x))
    packed = torch.zeros(7, 50)
    assert run(x, out=packed[:, :40]).data_ptr() == packed.data_ptr()
    torch.testing.assert_close(packed[:, :40], layer(x))
    assert not packed[:, 40:].any()


@pytest.mark.parametrize('batch, number', [(1, 1), (1, 3), (2, 2)])
@torch.no_grad()
def test_ways_of_gathering_and_reading_agree(batch, number):
    k, v = heads(batch, number, 9, 4), heads(batch, number, 9, 6)
    state = k.transpose(-2, -1) @ v
    torch.testing.assert_close(products.gather_by_convolution(k, v), state)
    for way in READ_WAYS:
        torch.testing.assert_close(way(k, state), k @ state)


def test_torch_still_has_the_private_product():
    """Where this fails torch has removed or renamed it: see ``products.packed``. Deploy mode goes
    on with 1x1 convolutions, some 10 % slower where oneDNN is fast."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip('torch is built without oneDNN')
    assert products.packed in products.affine_ways(torch.float32)


def test_without_the_private_product_there_are_two_ways(monkeypatch):
    def gone(*_):
        raise AttributeError

    monkeypatch.setattr(products, 'packed', gone)
    products._packs.cache_clear()
    try:
        expected = (products.matrix, products.convolution)
        assert products.affine_ways(torch.float32) == expected
    finally:
        products._packs.cache_clear()
    assert products.affine_ways(torch.float64) == (products.matrix,)


def test_the_fastest_is_measured_once(monkeypatch):
    calls = []

    def call(name, seconds):
        def run():
            calls.append(name)
            clock[0] += seconds

        return run

    clock = [0.0]
    monkeypatch.setattr(products, '_choices', {})
    monkeypatch.setattr(products.time, 'perf_counter', lambda: clock[0])
    candidates = [call('slow', 2), call('fast', 1), call('slower', 3)]
    assert products._fastest(('key',), lambda: candidates) == 1
    assert calls == ['slow', 'fast', 'slower'] * products.ROUNDS
    assert products._fastest(('key',), lambda: pytest.fail('measured again')) == 1


def test_outside_strips_nothing_is_measured(monkeypatch):
    """With gradients, and for an exporter or compiler, which would trace the measurement."""
    monkeypatch.setattr(products, '_choices', {})
    k, v = heads(2, 3, 9, 4).requires_grad_(), heads(2, 3, 9, 6)
    state = products.fast_gather(k, v)
    assert products.fast_read(k, state).grad_fn is not None
    with torch.no_grad(), use_backend('torch'):
        products.fast_read(k, products.fast_gather(k, v))
    assert not products._choices
    with torch.no_grad():
        torch.testing.assert_close(products.fast_gather(k, v), state)
    assert len(products._choices) == 1


def test_a_fast_layer_follows_its_weights():
    layer, x = fast_linear(8, 5), torch.randn(2, 3, 8)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
        layer.load_state_dict(nn.Linear(8, 5).state_dict())
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
        layer.weight.data = torch.zeros(5, 8)
        torch.testing.assert_close(layer(x), layer.bias.expand(2, 3, 5))


def test_a_fast_layer_follows_weights_that_have_no_version():
    with torch.inference_mode():
        layer, x = fast_linear(8, 5), torch.randn(3, 8)
        layer(x)
        layer.load_state_dict({key: 2 * value for key, value in layer.state_dict().items()})
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_what_was_measured_with_onednn_is_not_taken_without(monkeypatch):
    monkeypatch.setattr(products, '_choices', {})
    times = iter(range(100, 0, -1))
    monkeypatch.setattr(products, '_time', lambda call: next(times))  # the last way is the fastest
    k, layer = heads(1, 2, 9, 4), fast_linear(8, 5)
    with torch.no_grad():
        state = products.fast_gather(k, k)
        out = products.fast_read(k, state)
        with torch.backends.mkldnn.flags(enabled=False):
            torch.testing.assert_close(products.fast_gather(k, k), state)
            torch.testing.assert_close(products.fast_read(k, state), out)
            layer(torch.randn(3, 8))


def test_a_fast_layer_sees_weights_that_are_replaced_twice(monkeypatch):
    """The second would lie where the first one lay, at the same version."""
    monkeypatch.setattr(products, '_fastest', lambda *_: -1)  # the last way keeps no weight alive
    layer, x = fast_linear(16, 8), torch.ones(4, 16)
    with torch.no_grad():
        for _ in range(30):
            layer(x)
            layer.weight.data = torch.randn(8, 16)
            layer.weight.data = torch.randn(8, 16)
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


class Adapter(nn.Module):
    """Adds one to a linear layer, whose weights it shows, as those of LoRA do."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    weight = property(lambda self: self.layer.weight)
    bias = property(lambda self: self.layer.bias)

    def forward(self, x):
        return self.layer(x) + 1


def test_an_adapter_round_a_layer_is_called():
    layer, x, out = nn.Linear(8, 6), torch.randn(3, 8), torch.empty(3, 2)
    rows = slice(2, 4)
    with torch.no_grad():
        run = products.affine_of(Adapter(layer), x.dtype, rows)
        torch.testing.assert_close(run(x), layer(x)[:, rows] + 1)
        assert run(x, out=out) is out and out.equal(run(x))
        half = products.affine_of(Adapter(layer), torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize('shape', [(8,), (0, 8), (2, 0, 8)])
@torch.no_grad()
def test_a_fast_layer_takes_a_vector_and_no_rows(shape):
    layer, x = fast_linear(8, 5), torch.randn(shape)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_two_threads_with_two_dtypes_get_their_own_product(monkeypatch):
    layer, entered = fast_linear(8, 5), []
    fast_affine = products.fast_affine

    def interrupted(weight, bias):
        made = fast_affine(weight, bias)
        if not entered:
            entered.append(True)
            layer.affine(torch.float64)  # as another thread would, right before the store
        return made

    monkeypatch.setattr(products, 'fast_affine', interrupted)
    with torch.no_grad():
        assert layer.affine(torch.float32)(torch.ones(2, 8)).dtype == torch.float32


def test_deterministic_algorithms_measure_nothing(monkeypatch):
    monkeypatch.setattr(products, '_choices', {})
    layer, x = fast_linear(8, 5), torch.randn(3, 8)
    with torch.no_grad():
        layer(x)
        measured = layer._made
        products._choices.clear()
        torch.use_deterministic_algorithms(True)
        try:
            assert torch.equal(layer(x), torch.addmm(layer.bias, x, layer.weight.t()))
            assert products._fastest(('key',), lambda: pytest.fail('measured')) == 0
        finally:
            torch.use_deterministic_algorithms(False)
    assert layer._made is not measured and not products._choices


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@torch.no_grad()
def test_every_way_that_exists_is_timed(dtype, monkeypatch):
    """oneDNN's are there for float32 and not for float64."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip('torch is built without oneDNN')
    offered = {}

    def first(key, calls):
        offered[key[0]] = len(calls())
        return 0

    monkeypatch.setattr(products, '_fastest', first)
    k = heads(1, 2, 9, 4).to(dtype)
    products.fast_read(k, products.fast_gather(k, k))
    products.fast_affine(torch.ones(4, 4, dtype=dtype), None)
    single = dtype == torch.float32
    ways = len(products.affine_ways(dtype))
    assert offered == {'affine': ways, 'gather': 1 + single, 'read': 2 + single}
    assert (ways > 1) == single


@torch.no_grad()
def test_few_tokens_do_not_choose_for_many(monkeypatch):
    monkeypatch.setattr(products, '_choices', {})
    for tokens in (4, 64, 65):
        k = heads(1, 2, tokens, 4)
        products.fast_read(k, products.fast_gather(k, k))
    assert len(products._choices) == 4


def test_a_fast_layer_is_copied_and_pickled_without_what_it_made():
    layer, x = fast_linear(8, 5), torch.randn(3, 8)
    with torch.inference_mode():
        expected = layer(x)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert twin._made is None and layer._made is not None
            torch.testing.assert_close(twin(x), expected)


def test_a_fast_layer_trains_and_has_a_plain_form():
    layer, x = fast_linear(8, 5, bias=False), torch.randn(3, 8)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(5, 8))
    with torch.no_grad(), use_backend('torch'):
        layer(x)
    assert layer._made is None


@torch.no_grad()
def test_layers_run_in_the_dtype_that_is_asked_for():
    x = torch.randn(3, 8).bfloat16()
    for layer in (nn.Linear(8, 5), fast_linear(8, 5)):
        y = affine_of(layer, torch.bfloat16)(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(
            y.float(), x.float() @ layer.weight.t() + layer.bias, atol=0.03, rtol=0.03
        )


@pytest.fixture
def slow_mkl(monkeypatch):
    """Any machine takes the way of those with a slow MKL; gives the calls of convolutions."""
    calls, convolution = [], products.convolution

    def counted(weight, bias):
        calls.append(tuple(weight.shape))
        return convolution(weight, bias)

    monkeypatch.setattr(products, 'has_slow_mkl', lambda: True)
    monkeypatch.setattr(products, 'SMALL', 0)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    monkeypatch.setattr(products, 'convolution', counted)
    return calls


@pytest.fixture
def threads():
    """Sets the number of threads for the time of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize('channels', [24, 64])
@pytest.mark.parametrize('number', [1, 2])
def test_what_goes_to_a_convolution_is_computed_by_onednn(monkeypatch, threads, number, channels):
    """torch has rules of its own, by threads and size, for when it takes MKL after all."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip('torch is built without oneDNN')
    monkeypatch.setattr(products, 'has_slow_mkl', lambda: True)
    threads(number)
    weight = torch.randn(32, channels)
    for tokens in (products.SMALL // channels, products.SMALL // channels + 1):
        x = torch.randn(tokens, channels)
        with torch.profiler.profile() as profile:
            linear(x, weight)
        names = {event.name for event in profile.events()}
        wanted = number > 1 and x.numel() > products.SMALL
        assert ('aten::mkldnn_convolution' in names) == wanted
        assert ('aten::linear' in names) != wanted
    with torch.backends.mkldnn.flags(enabled=False), torch.profiler.profile() as profile:
        linear(x, weight)
    assert 'aten::linear' in {event.name for event in profile.events()}


def gradients(function, *tensors):
    """Of the output and of its gradient, in a fixed direction."""
    output = function(*tensors)
    inputs = [t for t in tensors if t is not None]
    direction = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    first = torch.autograd.grad((output * direction).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first[:2]), inputs[:2])
    return [output, *first, *second]


@pytest.mark.parametrize('shape', [(7, 24), (2, 3, 24), (1, 1, 24), (2, 3, 4, 24)])
@pytest.mark.parametrize('bias', [True, False])
def test_a_product_by_convolution_has_the_gradients_of_float64(slow_mkl, shape, bias):
    tensors = [torch.randn(shape), torch.randn(40, 24), torch.randn(40) if bias else None]
    runs = []
    for function, dtype in ((linear, torch.float32), (F.linear, torch.float64)):
        leaves = [None if t is None else t.to(dtype).requires_grad_() for t in tensors]
        runs.append(gradients(function, *leaves))
    assert slow_mkl == [(40, 24)]
    for ours, exact in zip(*runs, strict=True):
        error = (ours.detach().double() - exact.detach()).abs().max() / exact.detach().abs().max()
        assert float(error) < 1e-5


def test_a_product_by_convolution_takes_views(slow_mkl):
    wide, packed = torch.randn(2, 6, 30, requires_grad=True), torch.randn(36, 24)
    for x in (wide[..., 3:27], wide.transpose(0, 1)[..., :24], wide[:, ::2, :24]):
        weight = packed[12:]
        expected = F.linear(x, weight)
        torch.testing.assert_close(linear(x, weight), expected)
        torch.testing.assert_close(linear(x, weight.t().contiguous().t()), expected)
    assert len(slow_mkl) == 6


def test_the_result_lies_in_memory_as_that_of_a_linear_layer(slow_mkl):
    """A convolution of columns that lie side by side gives such columns."""
    weight = torch.randn(40, 24)
    columns, one = torch.randn(1, 24, 70), torch.randn(1, 24)
    for x in (columns.mT, columns[0].t(), one.expand(70, 24), one[:, :1].expand(70, 24)):
        y = linear(x, weight)
        assert y.is_contiguous()
        torch.testing.assert_close(y, F.linear(x, weight))
    assert len(slow_mkl) == 4


def test_what_a_convolution_does_not_take_is_torchs_own(slow_mkl):
    x, weight = torch.randn(6, 8), torch.randn(5, 8)
    for bias in (torch.ones(1), torch.ones(1, 5)):
        torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight) + 1)
    torch.testing.assert_close(linear(x, weight[0]), x @ weight[0])
    torch.testing.assert_close(linear(x, weight.to_sparse()), F.linear(x, weight))
    assert linear(x, weight[:0]).shape == (6, 0)
    with pytest.raises(RuntimeError, match='mat1 and mat2 shapes'):
        linear(x[:, 1:], weight)
    nested = torch.nested.nested_tensor([x, x[:2]])
    torch.testing.assert_close(linear(nested, weight)[1], F.linear(x[:2], weight))
    assert not slow_mkl


def test_other_products_are_torchs_own(slow_mkl):
    layer, x = Linear(8, 5), torch.randn(3, 8)
    shape = dict(in_features=8, out_features=5)
    layer.double()(x.double())
    layer.bfloat16()(x.bfloat16())
    layer.float()
    with torch.autocast('cpu', torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    for backend in ('torch', 'graph'):
        with use_backend(backend):
            layer(x)
    for few in (x[0], x[:0]):
        assert layer(few).shape == (*few.shape[:-1], 5)
    assert Linear(**shape, device='meta')(x.to('meta')).shape == (3, 5)
    with FakeTensorMode():
        assert Linear(**shape)(torch.randn(3, 8)).shape == (3, 5)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    finally:
        torch.use_deterministic_algorithms(False)
    assert not slow_mkl
    layer(x)
    assert slow_mkl


def test_a_compiler_and_an_exporter_see_one_linear_layer(slow_mkl):
    x = torch.randn(3, 8)
    program = torch.export.export(Linear(8, 5), (x,))
    assert [str(node.target) for node in program.graph.nodes if node.op == 'call_function'] == [
        'aten.linear.default'
    ]
    layer = Linear(8, 5)
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), F.linear(x, layer.weight, layer.bias))
    assert not slow_mkl


def test_a_layer_is_an_nn_linear_to_all_who_meet_it(slow_mkl):
    """Checkpoints, hooks, copies, parametrisations and functional transforms."""
    layer, x, seen = Linear(8, 5), torch.randn(3, 8), []
    layer.load_state_dict(nn.Linear(8, 5).state_dict())
    expected = F.linear(x, layer.weight, layer.bias)
    layer.register_forward_pre_hook(lambda *_: seen.append('before'))
    layer.register_forward_hook(lambda *_: seen.append('after'))
    layer.register_full_backward_hook(lambda *_: seen.append('backward'))
    layer(x.requires_grad_()).sum().backward()
    assert seen == ['before', 'after', 'backward']
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(Linear(8, 5)))):
        assert type(twin) is Linear and twin(x).shape == (3, 5)

    layer = copy.deepcopy(layer)
    layer._backward_hooks.clear()

    def loss(weight):
        return torch.func.functional_call(layer, {'weight': weight}, (x,)).square().sum()

    first = torch.func.grad(loss)(layer.weight.detach())
    torch.testing.assert_close(first, 2 * expected.t() @ x)
    each = torch.func.vmap(lambda row: linear(row, layer.weight, layer.bias))(x.view(3, 1, 8))
    torch.testing.assert_close(each[:, 0], expected)
    nn.utils.parametrizations.weight_norm(layer)
    torch.testing.assert_close(layer(x), expected)
    assert len(slow_mkl) >= 5


def test_a_rule_and_no_measurement_chooses_with_gradients(monkeypatch):
    """A run gives the same at each start."""
    monkeypatch.setattr(products, '_fastest', lambda *_: pytest.fail('measured'))
    Linear(8, 5)(torch.randn(3, 8)).sum().backward()
