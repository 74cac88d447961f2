"""The process of SiT: a straight line from noise to data, walked as an ODE or as an SDE."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..engine.errors import UserError
from ..registry import MODELS

Network = Callable[[Tensor, Tensor], Tensor]
SAMPLERS = ('sde', 'euler', 'heun')


@MODELS.register_module(force=True)
class Interpolant:
    """The linear path ``x_t = (1 - t) noise + t x``; the network predicts its velocity.

    The SDE has SiT's diffusion form "sigma", and ends with one step without noise ("Mean").

    Source: Ma et al., "SiT: Exploring Flow and Diffusion-based Generative Models with Scalable
    Interpolant Transformers", ECCV 2024.

    Args:
        sampler (str): ``'sde'`` (Euler-Maruyama), or for the ODE ``'euler'`` or ``'heun'``, which
            asks the network twice a step. Defaults to ``'sde'``.
        sampling_steps (int): Steps from noise to data. Defaults to 250.
        last_step (float): Length of the SDE's last step. Defaults to 0.04.

    Raises:
        UserError: If the sampler is unknown, there are fewer steps than 2, or the last step does
            not lie in (0, 1).
    """

    def __init__(
        self, sampler: str = 'sde', sampling_steps: int = 250, last_step: float = 0.04
    ) -> None:
        if sampler not in SAMPLERS:
            raise UserError(f"Unknown sampler '{sampler}'; choose from {', '.join(SAMPLERS)}.")
        if sampling_steps < 2 or not 0 < last_step < 1:
            raise UserError(
                f'sampling_steps needs to be 2 at least and last_step to lie between 0 and 1, got '
                f'{sampling_steps} and {last_step}.'
            )
        self.sampler = sampler
        self.sampling_steps = sampling_steps
        self.last_step = last_step

    def errors(self, network: Network, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Mean square error of the velocity, of each sample.

        Args:
            network (Callable): Of noisy samples (B, C, ...) and t (B,), to (B, C, ...); channels
                beyond C are left out.
            x (Tensor): Data, shape (B, C, ...).
            t (Tensor): Times, shape (B,), in [0, 1].
            noise (Tensor): Standard normal, shape of x.

        Returns:
            Tensor: Shape (B,).
        """
        time = t.view(-1, *[1] * (x.ndim - 1))
        velocity = self._velocity(network, torch.lerp(noise, x, time), t)
        return (velocity - (x - noise)).square().flatten(1).mean(1)

    def loss(self, network: Network, x: Tensor) -> dict[str, Tensor]:
        """Loss at random times, with random noise."""
        t = torch.rand(len(x), device=x.device, dtype=x.dtype)
        return dict(loss_mse=self.errors(network, x, t, torch.randn_like(x)).mean())

    def sample(self, network: Network, draw: Callable[[], Tensor]) -> Tensor:
        """From noise to data.

        Args:
            network (Callable): As in :meth:`errors`.
            draw (Callable): Gives standard normal noise (B, C, ...), another one at each call.

        Returns:
            Tensor: Shape (B, C, ...).
        """
        if self.sampler == 'sde':
            return self._walk_sde(network, draw)
        return self._walk_ode(network, draw(), heun=self.sampler == 'heun')

    def _velocity(self, network: Network, x: Tensor, t: Tensor | float) -> Tensor:
        times = t if isinstance(t, Tensor) else x.new_full((len(x),), t)
        return network(x, times)[:, : x.shape[1]].to(x.dtype)

    def _walk_ode(self, network: Network, x: Tensor, heun: bool) -> Tensor:
        step = 1 / self.sampling_steps
        for i in range(self.sampling_steps):
            velocity = self._velocity(network, x, i * step)
            if heun:
                ahead = self._velocity(network, x + step * velocity, (i + 1) * step)
                velocity = (velocity + ahead) / 2
            x = x + step * velocity
        return x

    def _walk_sde(self, network: Network, draw: Callable[[], Tensor]) -> Tensor:
        """``dx = (v + w s) dt + sqrt(2 w) dW`` with ``w = 1 - t``, and a last step without noise.

        The score is ``s = (t v - x) / (1 - t)``, so that the drift is ``(1 + t) v - x``.
        """

        def drift(x: Tensor, t: float) -> Tensor:
            return (1 + t) * self._velocity(network, x, t) - x

        end, steps = 1 - self.last_step, self.sampling_steps - 1
        step = end / steps
        x = draw()
        for i in range(steps):
            t = i * step
            x = x + step * drift(x, t) + (2 * (1 - t) * step) ** 0.5 * draw()
        return x + self.last_step * drift(x, end)
