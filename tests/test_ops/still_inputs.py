"""Random tensors for STILL, and a comparison that includes gradients."""

import torch

B, H, D, E, FEATURES = 2, 2, 4, 3, 5
NAMES = ('q', 'k', 'v', 'phi_q', 'phi_k', 'gate')


def inputs(n, m=None, dtype=torch.float64, scale=2.0):
    """q, k, v, phi_q, phi_k and gate of n queries and m keys."""
    m = n if m is None else m
    q, k = torch.randn(B, H, n, D) * scale, torch.randn(B, H, m, D) * scale
    features = torch.rand(B, H, n, FEATURES), torch.rand(B, H, m, FEATURES)
    tensors = (q, k, torch.randn(B, H, m, E), *features, torch.rand(B, H, n, E))
    return [x.to(dtype).requires_grad_() for x in tensors]


def assert_same_with_gradients(ours, expected, leaves):
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
    probe = torch.randn_like(expected)
    grads = [torch.autograd.grad(out, leaves, probe, allow_unused=True) for out in (ours, expected)]
    for name, a, b in zip(NAMES, *grads):
        a, b = (torch.zeros(()) if g is None or not g.any() else g for g in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f'{n}: {m}')
