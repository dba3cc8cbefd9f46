"""What an evaluation is worth before it is made: the expected fall of the best plan's loss."""

from __future__ import annotations

import numpy as np

_points, _masses = np.polynomial.hermite_e.hermegauss(9)
NODES = tuple(zip(_points.tolist(), (_masses / _masses.sum()).tolist(), strict=True))
"""Gauss-Hermite nodes and weights of a standard normal."""


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
    new_mean, new_fits = mean[known:], fits[known:]
    if not len(pool):
        return np.where(new_fits, mean.max(initial=-np.inf) - new_mean, 0.0)
    each = np.arange(len(new_mean))
    after = np.zeros(len(new_mean))
    for z, mass in NODES:
        least = (mean[pool] + z * change[:, pool]).min(1)
        after += mass * np.where(new_fits, np.minimum(least, new_mean + z * change[each, known + each]), least)
    return np.maximum(mean[pool].min() - after, 0.0)
