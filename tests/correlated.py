"""A linear whose inputs are correlated, and what an approximation of its weight costs in its output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DAMPING = 0.1


def example(out_features: int = 64, in_features: int = 192, seed: int = 0) -> tuple[nn.Linear, Tensor]:
    """A linear, and the Hessian of inputs that are correlated."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * in_features, in_features // 3 + 1, generator=g)
    x = x @ torch.randn(in_features // 3 + 1, in_features, generator=g)
    x = x + torch.randn(3 * in_features, in_features, generator=g)
    linear = nn.Linear(in_features, out_features, bias=False)
    linear.weight.data = torch.randn(out_features, in_features, generator=g)
    return linear, x.T @ x / len(x)


def correlated_inputs(rows: int, columns: int, seed: int = 1) -> Tensor:
    """Inputs with a few strong directions, and some channels that stand out, as in a language model."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns // 4, columns, generator=torch.Generator().manual_seed(0))
    channels = torch.exp(torch.randn(columns, generator=torch.Generator().manual_seed(2)))
    hidden = torch.randn(rows, columns // 4, generator=g) @ mixing + torch.randn(rows, columns, generator=g)
    return hidden * channels


def damped_error(weight: Tensor, linear: nn.Linear, hessian: Tensor) -> Tensor:
    """e H eᵀ of each row, in float64."""
    lost = (linear.weight.detach() - weight).double()
    damped = hessian.double() + DAMPING * hessian.double().diagonal().mean() * torch.eye(len(hessian))
    return ((lost @ damped) * lost).sum(1)
