"""JumpReLU and the step function with straight-through gradients for the threshold (2407.14435, section 4).

The derivative by the threshold is that of the expected loss, estimated with a rectangular kernel of width `_BANDWIDTH`.
"""

from typing import Any

import torch
from torch import Tensor

_BANDWIDTH = 0.5  # of pre-activations on rows with E||x|| = sqrt(d)


def _near(p: Tensor, threshold: Tensor) -> Tensor:
    """The kernel: 1 within half a bandwidth of the threshold, else 0."""
    return ((p - threshold).abs() < _BANDWIDTH / 2).to(p.dtype)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(p, threshold)
        return (p > threshold).to(p.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        p, threshold = ctx.saved_tensors
        return None, (-_near(p, threshold) / _BANDWIDTH * grads[0]).sum(dim=0)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(p, threshold)
        return p * (p > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        p, threshold = ctx.saved_tensors
        to_threshold = -threshold / _BANDWIDTH * _near(p, threshold) * grads[0]
        return grads[0] * (p > threshold), to_threshold.sum(dim=0)


def step(p: Tensor, threshold: Tensor) -> Tensor:
    """1 where p [n, k] > threshold [k], else 0; only the threshold has a gradient."""
    found: Tensor = _Step.apply(p, threshold)  # type: ignore[no-untyped-call]
    return found


def jump(p: Tensor, threshold: Tensor) -> Tensor:
    """p where p [n, k] > threshold [k], else 0."""
    found: Tensor = _Jump.apply(p, threshold)  # type: ignore[no-untyped-call]
    return found
