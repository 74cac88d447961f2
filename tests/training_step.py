"""One training step, and what it did to the parameters."""

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn


def take_step(model: nn.Module, cfg: Config, data: dict) -> tuple[list[str], list[str]]:
    """Names of trainable parameters that got no gradient, and of those that changed."""
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optim_wrapper.zero_grad = lambda **_: None  # Leave the gradients to be looked at.
    losses = model.train_step(data, optim_wrapper)
    assert torch.isfinite(losses['loss'])
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    return idle, changed
