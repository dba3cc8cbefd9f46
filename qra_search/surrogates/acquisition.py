"""Acquisition: expected improvement on a log scale, and the plan at which a score is largest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import erfcx, log_ndtr

LOG_SQRT_2PI = 0.5 * np.log(2 * np.pi)
TAIL = -1e3
"""Below so many deviations the asymptotic series of log EI is exact to double precision, the formula is not."""


def search_locally(
    score: Callable[[np.ndarray], np.ndarray], starts: np.ndarray, allowed: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """int (2, G): the plan of largest score that BoTorch's local search over single changes finds.

    Args:
        score: from codes (M, 2, G) to (M,); -inf is never chosen.
        starts: int (N, 2, G), where it begins, at least one.
        allowed: bool (2, G, K), the choices of each variable.
        known: int (M, 2, G), plans that are not chosen.
    """
    import torch
    from botorch.acquisition import AcquisitionFunction
    from botorch.optim.optimize import optimize_acqf_discrete_local_search

    class Acquisition(AcquisitionFunction):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)  # there is no BoTorch model behind it

        def forward(self, X: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(score(X.numpy().astype(np.int64).reshape(-1, *starts.shape[1:])))

    def tensor(codes: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(codes.reshape(len(codes), starts[0].size), dtype=torch.double)

    choices = [
        torch.as_tensor(np.flatnonzero(row), dtype=torch.double) for row in allowed.reshape(-1, allowed.shape[-1])
    ]
    with torch.no_grad():
        best, _ = optimize_acqf_discrete_local_search(
            Acquisition(), choices, q=1, num_restarts=len(starts), raw_samples=len(starts),
            batch_initial_conditions=tensor(starts)[:, None], X_avoid=tensor(known),
        )  # fmt: skip
    return np.asarray(best.numpy().astype(np.int64).reshape(starts.shape[1:]))


def log_expected_improvement(mean: np.ndarray, std: np.ndarray, best: np.ndarray) -> np.ndarray:
    """log E[max(0, best - y)] for y ~ N(mean, std^2), elementwise and stable far below the best (Ament et al. 2023).

    >>> float(np.round(np.exp(log_expected_improvement(np.array(0.0), np.array(1.0), np.array(0.0))), 6))
    0.398942
    """
    std = np.maximum(std, 1e-300)
    return np.log(std) + _log_h((best - mean) / std)


def _log_h(u: np.ndarray) -> np.ndarray:
    """log(phi(u) + u Phi(u)), the log of a unit Gaussian's expected improvement."""
    u = np.asarray(u, dtype=float)
    log_phi = -0.5 * u * u - LOG_SQRT_2PI
    near = np.maximum(u, -1.0)
    upper = np.log(np.exp(-0.5 * near * near - LOG_SQRT_2PI) + near * np.exp(log_ndtr(near)))
    middle = np.clip(u, TAIL, -1.0)
    lower = log_phi + np.log1p(np.sqrt(np.pi / 2) * middle * erfcx(-middle / np.sqrt(2)))
    far = np.minimum(u, TAIL)
    tail = log_phi - 2 * np.log(-far) + np.log1p(-3.0 / far**2)
    return np.where(u > -1.0, upper, np.where(u > TAIL, lower, tail))
