"""How far the prior's damage of each group is to be believed: one scale a group, by Bayesian linear regression."""

from __future__ import annotations

from itertools import product

import numpy as np

SPREADS = (0.1, 0.2, 0.4, 0.8)
"""How far the groups' scales may lie from their common one, relative to it; evidence chooses."""
NOISES = (0.01, 0.03, 0.1, 0.3)
"""Deviation of a loss near the best, relative to that of all losses; evidence chooses."""
ERROR_GROWTH = 0.05
"""Rise of that deviation with the loss above the best: a broken plan says little about good ones."""
WIDE = 10.0
"""Prior deviation of the constant and the common slopes, relative to what least squares would give them."""
LEAST_SCALE = 0.05
ROUNDING = 1e-9
"""A column whose deviation is below this share of its size is constant but for rounding."""


def fit_scales(damage: np.ndarray, gain: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, float]:
    """Scale of each group's damage (G,), and of the gain, that explain the losses.

    loss = constant - t * gain + sum over groups of (s + d_g) * damage_g, with wide priors on the constant, s and t,
    and d_g ~ N(0, (spread * s)^2); posterior means in closed form, spread and noise by marginal likelihood;
    O(N^2 (N + G)) for each of their 16 pairs.

    Args:
        damage: float (N, G), the prior's damage of each group in N plans.
        gain: float (N,), the prior's gain of each plan.
        losses: float (N,).

    Returns:
        Scales not below a twentieth of the common one, and so positive.
    """
    from scipy.linalg import cho_factor, cho_solve  # a third of what `qra search --help` took

    total = damage.sum(1)
    slope, slope_gain = _positive_slopes(total, gain, losses)
    spread_y = float(losses.std()) or 1.0
    common = np.column_stack([np.ones(len(losses)), total, -gain])
    wide = (WIDE * np.array([max(abs(losses.mean()), spread_y), slope, slope_gain])) ** 2
    shared = (common * wide) @ common.T
    within = slope**2 * damage @ damage.T
    rise = ERROR_GROWTH * (losses - losses.min())
    residual = losses - common @ np.array([losses.mean(), 0.0, 0.0])
    best: tuple[float, float, np.ndarray] | None = None
    for spread, noise in product(SPREADS, NOISES):
        covariance = shared + spread**2 * within + np.diag((noise * spread_y + rise) ** 2)
        factor = cho_factor(covariance, lower=True)
        weights = cho_solve(factor, residual)
        evidence = -0.5 * float(residual @ weights) - float(np.log(np.diag(factor[0])).sum())
        if best is None or evidence > best[0]:
            best = (evidence, spread, weights)
    assert best is not None
    _, spread, weights = best
    mean = wide * (common.T @ weights)
    scale = mean[1] + (spread * slope) ** 2 * (damage.T @ weights)
    least = LEAST_SCALE * slope
    return np.maximum(scale, least), float(max(mean[2], LEAST_SCALE * slope_gain))


def _positive_slopes(total: np.ndarray, gain: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """Rough size of the slopes of damage and gain, positive; 1 where a column does not vary."""

    def size(column: np.ndarray) -> float:
        spread = float(column.std())
        varies = spread > ROUNDING * float(np.abs(column).max(initial=0.0))
        return float(losses.std()) / spread if varies and losses.std() > 0 else 1.0

    return size(total), size(gain)
