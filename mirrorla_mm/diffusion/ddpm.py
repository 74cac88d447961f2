"""The process of DiT: 1000 steps from image to noise, and the way back with a learned variance."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.special import ndtr

from ..engine.errors import UserError
from ..registry import MODELS

Network = Callable[[Tensor, Tensor], Tensor]
# Bins of 8-bit images in [-1, 1], and where the outermost begin.
HALF_BIN = 1 / 255
EDGE = 0.999
SAMPLERS = ('ddpm', 'ddim')


@MODELS.register_module(force=True)
class DDPM:
    """Denoising diffusion: the network predicts the noise, and a variance between two bounds.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020; Nichol and
    Dhariwal, "Improved Denoising Diffusion Probabilistic Models", ICML 2021, as DiT sets it: linear
    betas, MSE plus the variational bound, which teaches the variance alone.

    Args:
        num_steps (int): Steps T of the training. Defaults to 1000.
        betas (tuple[float, float]): Variance of the first and of the last step. Defaults to 1e-4
            and 0.02.
        sampler (str): ``'ddpm'``, or ``'ddim'`` (Song et al., "Denoising Diffusion Implicit
            Models", ICLR 2021), which draws no noise on its way. Defaults to ``'ddpm'``.
        sampling_steps (int): Steps of the sampling, evenly among T. Defaults to 250.

    Raises:
        UserError: If the sampler is unknown, there are fewer steps than 2 or more than T, or a beta
            does not lie in (0, 1).
    """

    def __init__(
        self,
        num_steps: int = 1000,
        betas: tuple[float, float] = (1e-4, 0.02),
        sampler: str = 'ddpm',
        sampling_steps: int = 250,
    ) -> None:
        if sampler not in SAMPLERS:
            raise UserError(f"Unknown sampler '{sampler}'; choose {' or '.join(SAMPLERS)}.")
        if not 2 <= sampling_steps <= num_steps:
            raise UserError(
                f'sampling_steps needs to lie between 2 and the {num_steps} steps of the training, '
                f'got {sampling_steps}.'
            )
        if not all(0 < beta < 1 for beta in betas):
            raise UserError(f'betas need to lie between 0 and 1, got {tuple(betas)}.')
        signal = (1 - torch.linspace(*betas, num_steps, dtype=torch.float64)).cumprod(0)
        self.chain = Chain(signal, torch.arange(num_steps))
        kept = torch.linspace(0, num_steps - 1, sampling_steps, dtype=torch.float64).round().long()
        self.short_chain = Chain(signal[kept], kept)
        self.step = self.ddpm_step if sampler == 'ddpm' else self.ddim_step

    def errors(
        self, network: Network, x: Tensor, t: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean square error of the noise, and the variational bound, of each sample.

        Args:
            network (Callable): Of noisy samples (B, C, ...) and t (B,), to (B, 2C, ...).
            x (Tensor): Data, shape (B, C, ...).
            t (Tensor): Steps, shape (B,), int64 in [0, T).
            noise (Tensor): Standard normal, shape of x.

        Returns:
            tuple[Tensor, Tensor]: Both of shape (B,), the bound in bits per number.
        """
        noisy = self.chain.noisy(x, t, noise)
        predicted, share = predict(network, noisy, t)
        mse = (predicted - noise).square().flatten(1).mean(1)
        bound = self.chain.bound(x, noisy, t, predicted.detach(), share)
        return mse, bound.flatten(1).mean(1) / math.log(2)

    def loss(self, network: Network, x: Tensor) -> dict[str, Tensor]:
        """Losses at random times, with random noise."""
        t = torch.randint(len(self.chain), (len(x),), device=x.device)
        mse, bound = self.errors(network, x, t, torch.randn_like(x))
        return dict(loss_mse=mse.mean(), loss_vlb=bound.mean())

    def sample(self, network: Network, draw: Callable[[], Tensor]) -> Tensor:
        """From noise to data.

        Args:
            network (Callable): As in :meth:`errors`.
            draw (Callable): Gives standard normal noise (B, C, ...), another one at each call.

        Returns:
            Tensor: Shape (B, C, ...).
        """
        x = draw()
        for i in reversed(range(len(self.short_chain))):
            step = torch.full((len(x),), i, device=x.device)
            t = self.short_chain.times.to(x.device)[step]
            predicted, share = predict(network, x, t)
            x = self.step(x, step, predicted, share, draw if i else None)
        return x

    def ddpm_step(
        self, x: Tensor, i: Tensor, noise: Tensor, share: Tensor, draw: Callable | None
    ) -> Tensor:
        """One step back; without ``draw`` the mean alone."""
        mean, log_variance = self.short_chain.backwards(x, i, noise, share)
        return mean if draw is None else mean + (log_variance / 2).exp() * draw()

    def ddim_step(
        self, x: Tensor, i: Tensor, noise: Tensor, share: Tensor, draw: Callable | None
    ) -> Tensor:
        """One step back along the straight line between data and noise."""
        chain = self.short_chain
        data = chain.data(x, i, noise)
        signal = chain.at(chain.previous, i, x)
        return signal.sqrt() * data + (1 - signal).sqrt() * noise


def predict(network: Network, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The noise and the share of the variance, each of the shape of x (B, C, ...).

    Raises:
        UserError: If the network does not give 2C channels.
    """
    output = network(x, t).to(x.dtype)
    if output.shape[1] != 2 * x.shape[1]:
        raise UserError(
            f'DDPM learns a variance and needs {2 * x.shape[1]} channels of the network, got '
            f'{output.shape[1]}: set model.backbone.learn_sigma=True.'
        )
    predicted, share = output.chunk(2, dim=1)
    return predicted, share


class Chain:
    """Steps from data to noise, ``x_t = sqrt(signal_t) x + sqrt(1 - signal_t) noise``.

    Args:
        signal (Tensor): Falling from almost 1 to almost 0, shape (T,), float64.
        times (Tensor): What the network is told of each step, shape (T,), int64.
    """

    def __init__(self, signal: Tensor, times: Tensor) -> None:
        self.signal = signal
        self.times = times
        self.previous = torch.cat((torch.ones_like(signal[:1]), signal[:-1]))
        self.beta = 1 - signal / self.previous
        # Of x_{t-1} given x_t and x; at t = 0 it is certain, which has no logarithm.
        posterior = self.beta * (1 - self.previous) / (1 - signal)
        self.log_smallest = torch.cat((posterior[1:2], posterior[1:])).log()
        self.log_largest = self.beta.log()

    def __len__(self) -> int:
        return len(self.signal)

    @staticmethod
    def at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """Entries of a table, (B,) to (B, 1, ...) in the dtype of ``like``."""
        return table.to(t.device)[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))

    def noisy(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Data after t + 1 steps."""
        signal = self.at(self.signal, t, x)
        return signal.sqrt() * x + (1 - signal).sqrt() * noise

    def data(self, noisy: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The data that noisy data and their noise stand for."""
        signal = self.at(self.signal, t, noisy)
        return (noisy - (1 - signal).sqrt() * noise) / signal.sqrt()

    def posterior_mean(self, data: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """Mean of x_{t-1} given x_t and x (Ho et al., Eq. 7)."""
        before = self.previous.sqrt() * self.beta / (1 - self.signal)
        now = (1 - self.beta).sqrt() * (1 - self.previous) / (1 - self.signal)
        return self.at(before, t, noisy) * data + self.at(now, t, noisy) * noisy

    def backwards(
        self, noisy: Tensor, t: Tensor, noise: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of x_{t-1} as the network predicts them (Nichol, Eq. 15).

        Args:
            noisy (Tensor): x_t, shape (B, C, ...).
            t (Tensor): Shape (B,).
            noise (Tensor): Predicted, shape of x_t.
            share (Tensor): Predicted, -1 for the smallest variance and 1 for the largest.

        Returns:
            tuple[Tensor, Tensor]: Both of the shape of x_t.
        """
        mean = self.posterior_mean(self.data(noisy, t, noise), noisy, t)
        bounds = (self.at(table, t, noisy) for table in (self.log_smallest, self.log_largest))
        return mean, torch.lerp(*bounds, (share + 1) / 2)

    def bound(self, x: Tensor, noisy: Tensor, t: Tensor, noise: Tensor, share: Tensor) -> Tensor:
        """One term of the variational bound, in nats, of each number of x.

        The divergence of the predicted from the true distribution of x_{t-1}; at t = 0 the code
        length of x itself, in bins of 2/255 of [-1, 1].

        Args:
            x (Tensor): Data, shape (B, C, ...).
            noisy (Tensor): x_t, shape of x.
            t (Tensor): Shape (B,), int64.
            noise (Tensor): Predicted, shape of x.
            share (Tensor): Predicted, as in :meth:`backwards`.

        Returns:
            Tensor: Shape of x.
        """
        mean, log_variance = self.backwards(noisy, t, noise, share)
        truth = self.posterior_mean(x, noisy, t)
        excess = self.at(self.log_smallest, t, x) - log_variance
        distance = (truth - mean).square() * (-log_variance).exp()
        divergence = (excess.exp() - excess - 1 + distance) / 2
        first = t.view(-1, *[1] * (x.ndim - 1)) == 0
        return torch.where(first, code_length(x, mean, log_variance / 2), divergence)


def code_length(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """``-log`` of the normal probability of the bin of x; the outermost bins are open."""
    distance, precision = x - mean, (-log_std).exp()
    below, above = (ndtr((HALF_BIN + d) * precision) for d in (distance, -distance))
    # From the nearer side, as probabilities near 1 have no digits left for their difference.
    far, near = (ndtr((d - distance.abs()) * precision) for d in (-HALF_BIN, HALF_BIN))
    open_bin = torch.where(x > 0, above, below)
    return -torch.where(x.abs() > EDGE, open_bin, near - far).clamp(min=1e-12).log()
