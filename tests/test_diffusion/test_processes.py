"""Both processes against Gaussian data, whose score is known, and the bound against its definition.

Data are normal with a mean and a standard deviation for each channel. Then the best prediction at
every time is a formula, and samples have to have the data's mean and covariance.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from mirrorla_mm.diffusion import DDPM, Interpolant
from mirrorla_mm.diffusion.ddpm import Chain, code_length
from mirrorla_mm.engine.errors import UserError

MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64).view(1, 2, 1)
STD = torch.tensor([0.3, 0.9], dtype=torch.float64).view(1, 2, 1)
NUMBER = 4_000


def draw() -> Tensor:
    return torch.randn(NUMBER, 2, 1, dtype=torch.float64)


def view(t: Tensor) -> Tensor:
    return t.view(-1, 1, 1)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """``E[x_1 - x_0 | x_t]``, and a channel each that nobody asked for."""
    t = view(t)
    slope = (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2)
    out = MEAN + slope * (x - t * MEAN)
    return torch.cat((out, torch.full_like(out, math.nan)), dim=1)


class Best:
    """The best network for DiT's process: the expected noise and the true variance.

    Args:
        process (DDPM): Its short chain is walked.
        share (float, optional): Of the variance between its bounds; the true one by default.
    """

    def __init__(self, process: DDPM, share: float | None = None) -> None:
        self.process = process
        self.share = share

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        chain = self.process.short_chain
        i = torch.searchsorted(chain.times, t)
        signal, before, beta = (view(v[i]) for v in (chain.signal, chain.previous, chain.beta))
        noise = (1 - signal).sqrt() / (signal * STD**2 + 1 - signal) * (x - signal.sqrt() * MEAN)
        # Of x_{t-1} given x_t: the precisions of x_{t-1} itself and of the step add up.
        precision = 1 / (before * STD**2 + 1 - before) + (1 - beta) / beta
        bounds = [view(v[i]) for v in (chain.log_smallest, chain.log_largest)]
        share = 2 * (-precision.log() - bounds[0]) / (bounds[1] - bounds[0]) - 1
        if self.share is not None:
            share = torch.full_like(share, self.share)
        return torch.cat((noise, share.expand_as(x)), dim=1)


def assert_like_the_data(x: Tensor, std: Tensor = STD, bias: float = 0.0) -> None:
    """Mean and covariance within five standard errors, and a bias where the steps are coarse."""
    error = 5 / NUMBER**0.5
    assert ((x.mean(0) - MEAN[0]).abs() <= error * std[0] + bias).all()
    covariance = x.flatten(1).T.cov()
    variances = covariance.diagonal()
    expected = std.flatten() ** 2
    assert ((variances - expected).abs() <= error * 2**0.5 * expected + bias).all()
    assert covariance[0, 1].abs() <= error * std.prod() + bias


@pytest.mark.parametrize(
    ('sampler', 'steps', 'bias'), [('euler', 100, 0.02), ('heun', 25, 0.005), ('sde', 200, 0.02)]
)
def test_interpolant_draws_the_data(sampler, steps, bias):
    process = Interpolant(sampler, steps, last_step=1 / steps)
    assert_like_the_data(process.sample(velocity, draw), bias=bias)


@pytest.mark.parametrize(('sampler', 'order'), [('euler', 1), ('heun', 2)])
def test_ode_converges_by_its_order(sampler, order):
    noise = torch.linspace(-2, 2, 20, dtype=torch.float64).view(10, 2, 1)
    exact = MEAN + STD * noise  # Each channel's path is the line between its quantiles.
    errors = [
        (Interpolant(sampler, steps).sample(velocity, lambda: noise) - exact).abs().max()
        for steps in (64, 128)
    ]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_sde_ends_with_a_step_without_noise():
    calls = []

    def counted():
        calls.append(1)
        return draw()

    times = []

    def network(x, t):
        times.append(t[0].item())
        return velocity(x, t)

    Interpolant('sde', 250).sample(network, counted)
    assert len(times) == len(calls) == 250
    assert times[-1] == pytest.approx(0.96) and times[1] == pytest.approx(0.96 / 249)


@pytest.mark.parametrize('steps', [5, 40])
def test_ddpm_with_the_true_variance_draws_the_data_in_any_number_of_steps(steps):
    process = DDPM(sampling_steps=steps)
    assert_like_the_data(process.sample(Best(process), draw), bias=0.002)


def test_ddpm_needs_its_learned_variance():
    process = DDPM(sampling_steps=5)
    for share in (-1, 1):
        with pytest.raises(AssertionError):
            assert_like_the_data(process.sample(Best(process, share), draw), bias=0.002)


def test_ddim_draws_no_noise_and_the_data():
    calls = []
    process = DDPM(sampler='ddim', sampling_steps=100)
    x = process.sample(Best(process), lambda: calls.append(1) or draw())
    assert len(calls) == 1
    assert_like_the_data(x, bias=0.03)


@pytest.mark.parametrize('steps', [2, 7, 250, 1000])
def test_steps_are_spread_as_the_authors_spread_them(steps):
    stride, place, expected = 999 / (steps - 1), 0.0, []
    for _ in range(steps):
        expected.append(round(place))
        place += stride
    chain = DDPM(sampling_steps=steps).short_chain
    assert chain.times.tolist() == expected
    whole = DDPM().chain
    torch.testing.assert_close(chain.signal, whole.signal[chain.times])


def test_betas_are_linear():
    chain = DDPM().chain
    torch.testing.assert_close(chain.beta, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


def test_bound_is_its_definition():
    """All terms of a short chain, each of normal distributions written out."""
    process = DDPM(num_steps=6, betas=(0.05, 0.4), sampling_steps=6)
    beta = torch.linspace(0.05, 0.4, 6, dtype=torch.float64)
    alpha_bar = (1 - beta).cumprod(0)
    x = (torch.randint(256, (5, 2, 3)) / 127.5 - 1).double()
    x[0] = torch.tensor([[-1.0, 1.0, 0.0], [1.0, -1.0, 1.0]])
    noise = torch.randn_like(x)
    out = torch.randn(5, 4, 3, dtype=torch.float64)
    eps, share = out.chunk(2, dim=1)
    for step in range(6):
        t = torch.full((5,), step)
        mse, bound = process.errors(lambda x, t: out, x, t, noise)
        torch.testing.assert_close(mse, (eps - noise).square().mean((1, 2)))
        ab, b = alpha_bar[step], beta[step]
        before = alpha_bar[step - 1] if step else torch.tensor(1.0, dtype=torch.float64)
        noisy = ab.sqrt() * x + (1 - ab).sqrt() * noise

        def posterior(data, ab=ab, b=b, before=before, noisy=noisy):
            """Bayes: the step's likelihood times what is known of x_{t-1} from the data."""
            precision = (1 - b) / b + 1 / (1 - before)
            mean = ((1 - b).sqrt() / b * noisy + before.sqrt() / (1 - before) * data) / precision
            return mean, 1 / precision

        guess = (noisy - (1 - ab).sqrt() * eps) / ab.sqrt()
        smallest = posterior(x)[1] if step else beta[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1])
        variance = torch.exp(b.log() * (share + 1) / 2 + smallest.log() * (1 - share) / 2)
        if step:
            theirs = Normal(posterior(x)[0], smallest.sqrt())
            ours = Normal(posterior(guess)[0], variance.sqrt())
            nats = kl_divergence(theirs, ours)
        else:
            ours = Normal(guess, variance.sqrt())
            upper = torch.where(x > 0.999, 1.0, ours.cdf(x + 1 / 255))
            lower = torch.where(x < -0.999, 0.0, ours.cdf(x - 1 / 255))
            nats = -(upper - lower).clamp(min=1e-12).log()
        torch.testing.assert_close(bound, nats.mean((1, 2)) / math.log(2))


def test_code_lengths_of_all_bins_are_those_of_a_distribution():
    x = (torch.arange(256) / 127.5 - 1).view(256, 1)
    mean, log_std = torch.tensor([[-0.97, 0.1, 1.3]]), torch.tensor([[-3.0, -1.0, 0.5]])
    probabilities = (-code_length(x.expand(256, 3), mean, log_std)).exp()
    torch.testing.assert_close(probabilities.sum(0), torch.ones(3), rtol=1e-3, atol=0)


def test_the_bound_teaches_the_variance_alone():
    process = DDPM()
    out = torch.randn(3, 4, 8, requires_grad=True)
    x, t = torch.randn(3, 2, 8), torch.tensor([0, 500, 999])
    _, bound = process.errors(lambda x, t: out, x, t, torch.randn_like(x))
    (gradient,) = torch.autograd.grad(bound.sum(), out)
    assert gradient[:, :2].count_nonzero() == 0
    assert gradient[1:, 2:].count_nonzero() == gradient[1:, 2:].numel()


def test_losses_are_of_the_terms_that_they_name():
    x = torch.randn(64, 2, 8)
    losses = DDPM().loss(lambda x, t: torch.zeros(64, 4, 8), x)
    assert set(losses) == {'loss_mse', 'loss_vlb'}
    assert losses['loss_mse'].item() == pytest.approx(1, rel=0.1)
    (loss,) = Interpolant().loss(lambda x, t: torch.zeros(64, 2, 8), x).values()
    assert loss.item() == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize('process, last', [(DDPM(), 999), (Interpolant(), 1)])
def test_training_meets_all_times_equally_often(process, last):
    def network(x, t):
        seen.append(t.double() / last)
        return torch.zeros(len(x), 2, 1)

    seen = []
    process.loss(network, torch.randn(NUMBER, 1, 1))
    (times,) = seen
    assert 0 <= times.min() < 0.005 and 0.995 < times.max() <= 1
    # Five standard errors of the mean and of the share of each tenth.
    assert times.mean().item() == pytest.approx(0.5, abs=5 / (12 * NUMBER) ** 0.5)
    shares = times.histc(10, 0, 1) / NUMBER
    assert (shares - 0.1).abs().max() < 5 * (0.1 * 0.9 / NUMBER) ** 0.5


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: DDPM(sampler='dpm'), 'choose ddpm or ddim'),
        (lambda: DDPM(sampling_steps=1001), 'between 2 and the 1000 steps'),
        (lambda: DDPM(sampling_steps=1), 'between 2 and'),
        (lambda: Interpolant('dopri5'), 'choose from sde, euler, heun'),
        (lambda: Interpolant(sampling_steps=1), '2 at least'),
        (lambda: Interpolant(last_step=1.0), 'between 0 and 1'),
    ],
)
def test_settings_that_make_no_sense_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_chain_is_certain_of_where_it_ends():
    chain = Chain(torch.tensor([0.9, 0.5], dtype=torch.float64), torch.tensor([0, 1]))
    x, noise = torch.randn(2, 4, 2, 1, dtype=torch.float64)
    t = torch.zeros(4, dtype=torch.long)
    mean = chain.posterior_mean(x, chain.noisy(x, t, noise), t)
    torch.testing.assert_close(mean, x)
