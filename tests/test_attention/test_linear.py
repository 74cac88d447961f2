import pytest
import torch
import torch.nn.functional as F

from mirrorla_mm.attention import EfficientAttention, MirrorAttention, linear
from mirrorla_mm.attention.linear import LinearAttention
from mirrorla_mm.ops import backend as backends
from mirrorla_mm.ops import strips, use_backend
from mirrorla_mm.registry import ATTENTIONS, MODELS
from tests.test_attention.quadratic import DIMS, WEAK, randomised

METHODS = sorted(name for name, cls in ATTENTIONS.items() if issubclass(cls, LinearAttention))
HOSTS = [{}, dict(gate=True, lepe_kernel=5, rope=True)]
REFLECTED = [
    'ELUAttention',
    'FLattenAttention',
    'MirrorAttention',
    'PolaAttention',
    'RALA',
    'ReLUAttention',
]
HW = (17, 9)  # Enough tokens for reflections to be folded into the projection.
every_method = pytest.mark.parametrize('method', METHODS)
every_host = pytest.mark.parametrize('options', HOSTS, ids=['bare', 'ravlt host'])


def host_options(method, options):
    """Those that the method does not bring itself."""
    return {key: value for key, value in options.items() if key not in MODELS.get(method).brings}


def tokens(hw=HW):
    return torch.randn(2, hw[0] * hw[1], DIMS, dtype=torch.float64)


@pytest.fixture
def short_strips(monkeypatch):
    """Strips of two rows, and how many there were in each call."""
    monkeypatch.setattr(strips, 'STRIP_BYTES', 2 * 3 * HW[1] * DIMS * 8)
    counts = []

    def count(*args):
        cut = strips.row_strips(*args)
        counts.append(len(cut))
        return cut

    monkeypatch.setattr(linear, 'row_strips', count)
    return counts


@every_method
def test_transforms_of_torch_func_see_no_strips(method, short_strips):
    attention = randomised(MODELS.get(method), grid_size=(5, 4))
    x = tokens()
    with torch.no_grad():
        expected = attention(x, HW)
        each = torch.func.vmap(lambda image: attention(image, HW))(x.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(each, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('grad', [True, False])
@every_method
def test_a_map_that_does_not_hold_the_tokens_is_refused(method, grad):
    attention = randomised(MODELS.get(method), grid_size=(5, 4))
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match='does not hold 153 tokens'):
        attention(tokens(), (HW[0] - 1, HW[1]))


@every_method
@every_host
def test_strips_give_what_the_reference_gives(method, options, short_strips):
    options = host_options(method, options)
    attention = randomised(MODELS.get(method), grid_size=(5, 4), **options)
    x = tokens()
    with use_backend('torch'), torch.no_grad():
        expected = attention(x, HW)
    assert not short_strips
    with torch.no_grad():
        out = attention(x, HW)
    by_strips = not (isinstance(attention, EfficientAttention) and attention.rope)
    assert short_strips == [9] * by_strips
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('method', REFLECTED)
@every_host
def test_reflected_features_in_strips_are_those_of_the_reference(method, options, short_strips):
    options = dict(host_options(method, options), reflection=WEAK)
    attention = randomised(MODELS.get(method), **options)
    x = tokens()
    with use_backend('torch'), torch.no_grad():
        expected = attention(x, HW)
    with torch.no_grad():
        torch.testing.assert_close(attention(x, HW), expected, rtol=1e-9, atol=1e-9)
    # Those after a position table or a scale have to see all tokens.
    assert short_strips == ([] if method in ('FLattenAttention', 'PolaAttention') else [9])


@pytest.mark.parametrize('layout', ['contiguous', 'batch inside'])
def test_small_images_share_a_strip_whatever_their_strides(layout):
    attention = randomised(MODELS.get('ReLUAttention'), gate=True, lepe_kernel=3)
    x = torch.randn(40, 6, DIMS, dtype=torch.float64)
    if layout == 'batch inside':
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    with torch.no_grad():
        # Queries, keys and values of an image, in float64.
        assert attention.plan(x, (2, 3)).images == strips.STRIP_BYTES // (3 * 6 * DIMS * 8) > 40
        torch.testing.assert_close(attention(x, (2, 3))[7:8], attention(x[7:8], (2, 3)))


@every_method
@every_host
@pytest.mark.parametrize('hw', [HW, (2, 3)], ids=['reflections folded', 'not folded'])
def test_training_has_the_gradients_of_the_reference(method, options, hw):
    attention = randomised(MODELS.get(method), grid_size=(5, 4), **host_options(method, options))
    x = tokens(hw).requires_grad_()
    seed = torch.randn_like(x)
    results = []
    for name in ('torch', 'lean'):
        with use_backend(name):
            out = attention(x, hw)
        results.append([out, *torch.autograd.grad(out, [x, *attention.parameters()], seed)])
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize('odd', [{}, dict(variance_aware=False), dict(shared=False)])
def test_heads_of_odd_dimension_leave_their_last_channel_unreflected(odd, short_strips):
    attention = MirrorAttention(15, 3, reflection=odd).double().eval()
    x = torch.randn(2, 153, 15, dtype=torch.float64)
    with use_backend('torch'), torch.no_grad():
        expected = attention(x, HW)
    with torch.no_grad():
        torch.testing.assert_close(attention(x, HW), expected, rtol=1e-9, atol=1e-9)
    assert short_strips
    assert attention.reflection.theta.shape == (3, 2)


def test_the_operator_gets_what_the_projection_makes_and_the_angles():
    """Any registered backend is asked before a token is projected, and gets raw q, k and v."""
    attention = randomised(MirrorAttention, rope=True)
    x, calls, asked = tokens(), [], []
    q, k, v = attention.project(x, HW)

    def run(*arguments):
        calls.append(arguments)
        return backends._backends['torch'].run(*arguments)

    def why_not(*arguments):
        asked.append(arguments)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setitem(backends._backends, 'own', backends.Backend(run, why_not))
        out = attention(x, HW)
    expected = backends.Heads((2, 2, HW[0] * HW[1], DIMS // 2), x.dtype, x.device)
    assert asked[0][:3] == (expected,) * 3 and asked[0][3:] == calls[0][3:]
    ((ours_q, ours_k, ours_v, theta, theta_k, options),) = calls
    for ours, raw in ((ours_q, q), (ours_k, k), (ours_v, v)):
        torch.testing.assert_close(ours.transpose(1, 2).flatten(2), raw)
    assert theta is attention.reflection.theta and theta_k is None
    assert options.feature_map == 'mirror' and options.hw_shape == HW
    with torch.no_grad():
        torch.testing.assert_close(out, attention(x, HW))


def test_reduced_keys_are_reflected_as_the_reference_reflects_them(monkeypatch):
    attention, x, seen = randomised(MirrorAttention, sr_ratio=3), tokens(), []
    select = linear.select_backend
    monkeypatch.setattr(linear, 'select_backend', lambda *a: seen.append(a) or select(*a))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            out = attention(x, HW)
            with use_backend('torch'):
                torch.testing.assert_close(out, attention(x, HW))
    q, k, v = seen[0][:3]
    assert q.shape == (2, 2, 17 * 9, 8) and k.shape == v.shape == (2, 2, 5 * 3, 8)


@pytest.mark.parametrize('method', METHODS)
def test_projections_without_bias(method, short_strips):
    attention = randomised(MODELS.get(method), qkv_bias=False, grid_size=HW)
    assert attention.qkv.bias is None
    x = tokens()
    with torch.no_grad():
        out = attention(x, HW)
    assert short_strips
    with use_backend('torch'):
        torch.testing.assert_close(out, attention(x, HW), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(attention(x, HW), out, rtol=1e-9, atol=1e-9)


def test_the_backend_is_chosen_for_the_dtype_of_the_projection():
    x = torch.zeros(1)
    assert linear.linear_dtype(x) == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        assert linear.linear_dtype(x) == torch.bfloat16
        assert linear.linear_dtype(x.double()) == torch.float64
        assert linear.linear_dtype(x.to('meta')) == torch.float32


@pytest.mark.parametrize('method', ['MirrorAttention', 'ReLUAttention', 'NaLaAttention'])
def test_attend_means_the_same_at_any_size(method):
    """Raw q, k, v of many tokens and of few: the angles are those of these tokens."""
    attention = randomised(MODELS.get(method))
    for hw in (HW, (2, 3)):
        q, k, v = map(attention.split_heads, attention.project(tokens(hw), hw)[:3])
        before = q.clone()
        with torch.no_grad():
            ours = attention.attend(q, k, v, hw)
            with use_backend('torch'):
                torch.testing.assert_close(ours, attention.attend(q, k, v, hw))
        assert torch.equal(q, before)


def test_the_reference_turns_by_sines_and_cosines():
    attention, x = randomised(MODELS.get('NaLaAttention'), rope=True), tokens()
    for name in ('torch', 'lean'):
        with use_backend(name):
            assert attention.place(x, HW, attention.plan(x, HW)).plain == (name == 'torch')


def test_a_backend_without_the_method_is_refused_by_name():
    attention = randomised(MODELS.get('HydraAttention'))
    with use_backend('triton'), pytest.raises(RuntimeError, match='it knows the feature maps'):
        attention(tokens(), HW)


def test_fixed_angles_are_folded_without_a_look_at_the_tokens(monkeypatch):
    from mirrorla_mm.ops import folding

    attention = randomised(MirrorAttention, reflection=dict(variance_aware=False))
    x = tokens()
    with use_backend('torch'), torch.no_grad():
        expected = attention(x, HW)
    monkeypatch.setattr(folding, 'token_covariance', None)
    with torch.no_grad():
        torch.testing.assert_close(attention(x, HW), expected)
        attention.fold_for_inference()
        torch.testing.assert_close(attention(x, HW), expected)
    assert attention.reflection is None


def test_strips_of_very_different_keys_neither_overflow_nor_vanish(short_strips):
    attention = randomised(MODELS.get('EfficientAttention'))
    x = torch.randn(1, 153, DIMS, dtype=torch.float64) * torch.linspace(0, 900, 153).view(1, -1, 1)
    expected = attention(x, HW)
    with torch.no_grad():
        torch.testing.assert_close(attention(x, HW), expected, rtol=1e-7, atol=1e-7)


@every_method
@pytest.mark.parametrize('train', [True, False])
def test_an_empty_batch_gives_an_empty_batch(method, train):
    attention = randomised(MODELS.get(method), grid_size=HW)
    with torch.set_grad_enabled(train):
        assert attention(tokens()[:0], HW).shape == (0, 153, DIMS)


@pytest.mark.parametrize(
    'method, option',
    [
        ('FLattenAttention', dict(lepe_kernel=5)),
        ('PolaAttention', dict(gate=False)),
        ('InLineAttention', dict(lepe_kernel=3)),
        ('LinearAngularAttention', dict(lepe_kernel=3)),
        ('NaLaAttention', dict(out_norm=False)),
        ('AgentAttention', dict(rope=True)),
    ],
)
def test_an_option_that_a_method_cannot_take_is_refused(method, option):
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=f'{method} brings {name}=.* cannot take {name}={value}'):
        MODELS.get(method)(DIMS, 2, **option)


def test_a_backend_with_strips_and_a_packed_form_keeps_the_reflection(monkeypatch):
    """With gradients there are no strips; the projection reflects, and not the packed form."""
    attention, x = randomised(MirrorAttention), tokens()
    with use_backend('torch'):
        expected = attention(x, HW)

    def packed(*_):
        pytest.fail('the packed form would reflect nothing')

    lean = backends._backends['lean']
    monkeypatch.setitem(backends._backends, 'mine', lean._replace(packed=packed))
    torch.testing.assert_close(attention(x, HW), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('method', ['MirrorAttention', 'ReLUAttention'])
@every_host
def test_a_packed_form_gets_the_projection_head_by_head(method, options, monkeypatch):
    attention, x = randomised(MODELS.get(method), **options), tokens()
    with use_backend('torch'):
        expected = attention(x, HW)
    reference, calls = backends._backends['torch'], []

    def packed(projected, *arguments):
        calls.append(projected.shape)
        q, k, v, *gate = (part.transpose(1, 2) for part in projected.unbind(2))
        out = reference.run(q, k, v, *arguments)
        return out, *(part.transpose(1, 2).flatten(2) for part in (v, *gate))

    monkeypatch.setitem(backends._backends, 'mine', reference._replace(packed=packed))
    torch.testing.assert_close(attention(x, HW), expected, rtol=1e-9, atol=1e-9)
    assert calls == [(2, 153, 3 + bool(options), 2, DIMS // 2)]


def test_own_values_of_reduced_keys_are_interpolated_on_the_map():
    attention = randomised(MODELS.get('LinearAngularAttention'), sr_ratio=2)
    v = torch.randn(2, 2, 6, DIMS // 2, dtype=torch.float64)
    own = attention._own_value(v, (4, 6))
    expected = F.interpolate(v.mT.reshape(2, DIMS, 2, 3), size=(4, 6), mode='bilinear')
    torch.testing.assert_close(own.mT.reshape(2, DIMS, 4, 6), expected)


@every_method
def test_strips_compute_in_autocast_s_dtype(method, short_strips, monkeypatch):
    monkeypatch.setattr(strips, 'has_bfloat16', lambda: True)
    attention = randomised(MODELS.get(method), grid_size=(5, 4)).float()
    x = tokens().float()
    with torch.no_grad():
        expected = attention(x, HW)
        with torch.autocast('cpu', torch.bfloat16):
            out = attention(x, HW)
    assert len(short_strips) == 2 and out.dtype == torch.bfloat16
    torch.testing.assert_close(
        out.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item()
    )
