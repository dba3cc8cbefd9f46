"""What an evaluation is worth before it is made, and the plans that are worth most."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import erfcx, ndtr

from qra_search.space.space import SearchSpace
from qra_search.space.steps import exclude_known

_points, _masses = np.polynomial.hermite_e.hermegauss(9)
GAUSS_HERMITE_NODES = tuple(zip(_points.tolist(), (_masses / _masses.sum()).tolist(), strict=True))
"""Gauss-Hermite nodes and weights of a standard normal."""
LOG_SQRT_2PI = 0.5 * np.log(2 * np.pi)
MIN_U = -1e5
"""Deviations below the best at which log EI ends: further down rounding would decide."""

Score = Callable[[np.ndarray], np.ndarray]
"""Codes (M, 2, G) to their acquisition (M,); -inf is never chosen."""


def rank_codes(
    space: SearchSpace, score: Score, codes: np.ndarray, known: np.ndarray, limit: int
) -> np.ndarray:
    """int (K, 2, G): those of the codes (M, 2, G) that are not known (N, 2, G) and take at most `limit` bytes, each
    once, that of largest score first."""
    codes = np.unique(codes, axis=0)
    codes = exclude_known(codes[space.memory.bytes(codes) <= limit], known)
    values = score(codes) if len(codes) else np.zeros(0)
    order = np.argsort(-values, kind="stable")
    return codes[order[np.isfinite(values[order])]]


def search_locally(score: Score, starts: np.ndarray, allowed: np.ndarray, known: np.ndarray) -> np.ndarray:
    """int (2, G): the plan of largest score that BoTorch's local search over single changes finds.

    Args:
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
        torch.as_tensor(np.flatnonzero(row), dtype=torch.double)
        for row in allowed.reshape(-1, allowed.shape[-1])
    ]
    with torch.no_grad():
        best, _ = optimize_acqf_discrete_local_search(
            Acquisition(),
            choices,
            q=1,
            num_restarts=len(starts),
            raw_samples=len(starts),
            batch_initial_conditions=tensor(starts)[:, None],
            X_avoid=tensor(known),
        )
    return np.asarray(best.numpy().astype(np.int64).reshape(starts.shape[1:]))


def log_expected_improvement(mean: np.ndarray, std: np.ndarray, best: np.ndarray) -> np.ndarray:
    """log E[max(0, best - y)] for y ~ N(mean, std^2), elementwise and stable far below the best (Ament et al. 2023).

    >>> float(np.round(np.exp(log_expected_improvement(np.array(0.0), np.array(1.0), np.array(0.0))), 6))
    0.398942
    """
    u = np.maximum((best - mean) / std, MIN_U)
    near = np.maximum(u, -1.0)
    far = np.minimum(u, -1.0)
    upper = np.log(np.exp(-0.5 * near * near - LOG_SQRT_2PI) + near * ndtr(near))
    lower = -0.5 * far * far - LOG_SQRT_2PI + np.log1p(np.sqrt(np.pi / 2) * far * erfcx(-far / np.sqrt(2)))
    return np.log(std) + np.where(u > -1.0, upper, lower)


def knowledge_gradient(mean: np.ndarray, change: np.ndarray, known: int, fits: np.ndarray) -> np.ndarray:
    """(M,), expected fall of the least mean among the known plans and the new one that is evaluated.

    The knowledge gradient (Frazier, Powell and Dayanik 2009) of the best plan. While no known plan
    fits, the least mean is taken to be that of the worst plan.

    Args:
        mean: (P,), believed losses of plans: first the `known` ones, which were evaluated, then M = P - known new ones.
        change: (M, P), change of each plan's mean by the evaluation of each new one, per deviation of what it may show.
        fits: bool (P,), plans within the budget.
    """
    pool = np.flatnonzero(fits[:known])
    new_mean = mean[known:]
    new_fits = fits[known:]
    if not len(pool):
        return np.where(new_fits, mean.max(initial=-np.inf) - new_mean, 0.0)
    each = np.arange(len(new_mean))
    after = np.zeros(len(new_mean))
    for z, mass in GAUSS_HERMITE_NODES:
        least = (mean[pool] + z * change[:, pool]).min(1)
        after += mass * np.where(
            new_fits, np.minimum(least, new_mean + z * change[each, known + each]), least
        )
    return np.maximum(mean[pool].min() - after, 0.0)
