"""How much each group's bits and rank matter, by the sensitivities, and the plans and repairs that follow from it.

Equation numbers are those of AutoQRA (arXiv 2602.22268), which took them over from QR-Adaptor (arXiv 2505.03802).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.space.space import SearchSpace
from qra_search.strategies.baselines.nsga2 import mutate
from qra_search.strategies.plan_codec import PlanCodec
from qra_search.surrogates.gp import level_values, ordinal_levels
from qra_search.surrogates.prior_table import flat_prior

EPSILON = 1e-8
BISECTIONS = 40
JITTER = 0.1
"""Chance of each variable of a warm start to take one step, for diversity."""


@dataclass(frozen=True)
class Importance:
    """Importance of the bits and the rank of every group, each (G,), within [0, 1] and 1 for the most important."""

    bits: np.ndarray
    ranks: np.ndarray

    @classmethod
    def of(cls, space: SearchSpace, sensitivities: Sensitivities | None) -> Importance:
        """Bits by the damage of the smallest bit-width, ranks by the gain of the largest; all alike where it is 0."""
        sensitivities = sensitivities or flat_prior(space)
        rows = np.arange(len(space))
        damage = sensitivities.bits_damage[rows, space.bits_allowed.argmax(1)]
        gain = sensitivities.rank_gain[rows, len(space.ranks) - 1 - space.ranks_allowed[:, ::-1].argmax(1)]
        return cls(_share_of_largest(damage), _share_of_largest(gain))

    @property
    def variables(self) -> np.ndarray:
        """float (2 G,): the importance of every variable."""
        return np.concatenate([self.bits, self.ranks])


def warm_start(codec: PlanCodec, importance: Importance, budget: int) -> np.ndarray:
    """int (2 G,): bits and ranks that rise with importance (eq. 6), by as much as the budget allows.

    A variable takes the allowed choice nearest to smallest + (largest - smallest) * min(1, scale * importance);
    the scale is the largest that fits.
    """
    values = _values(codec)
    least, most = np.nanmin(values, 1), np.nanmax(values, 1)

    def at(scale: float) -> np.ndarray:
        wanted = least + np.minimum(1.0, scale * importance.variables) * (most - least)
        return np.nanargmin(np.abs(values - wanted[:, None]), 1)

    low, high = 0.0, 1.0 / max(float(importance.variables[importance.variables > 0].min(initial=1.0)), EPSILON)
    if codec.bytes(at(high)) <= budget:
        return at(high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if codec.bytes(at(middle)) <= budget else (low, middle)
    return at(low)


def jittered_start(
    codec: PlanCodec, importance: Importance, budget: int, rng: np.random.Generator, rate: float = JITTER
) -> np.ndarray:
    """int (2 G,): a warm start of which each variable took, with chance `rate`, one step; within the budget."""
    row = warm_start(codec, importance, budget)
    return codec.repair(mutate(codec, row, rate, rng), budget, rng) if rate > 0 else row


def repair_by_importance(
    codec: PlanCodec, row: np.ndarray, budget: int, importance: Importance, keep: int | None = None
) -> np.ndarray:
    """int (2 G,): the row brought under the budget by the single steps down that cost least (eqs. 4 and 5).

    Each step is the one with the smallest (importance + epsilon) / bytes saved; deterministic.

    Args:
        keep: a variable that goes down last.

    Raises:
        BudgetTooSmall: no plan fits.
    """
    codec.space.memory.check_budget(budget)
    row, v = row.copy(), np.arange(codec.variables)
    total = int(codec.bytes(row))
    while total > budget:
        down = codec.below[v, row]
        saved = codec.bytes_of[v, row] - codec.bytes_of[v, down]
        price = np.where(saved > 0, (importance.variables + EPSILON) / np.maximum(saved, 1), np.inf)
        if keep is not None and np.isfinite(np.delete(price, keep)).any():
            price[keep] = np.inf
        if not np.isfinite(price).any():
            # Bytes do not rise with every step up: take each variable's smallest choice outright.
            return np.where(codec.allowed, codec.bytes_of, np.iinfo(np.int64).max).argmin(1)
        step = int(price.argmin())
        row[step] = down[step]
        total -= int(saved[step])
    return row


def coverage_encoding(codec: PlanCodec, importance: Importance) -> Callable[[np.ndarray], np.ndarray]:
    """Ordinal places of all variables, and how well bits and ranks cover what is important (eq. 9).

    Returns:
        A function of rows (M, 2 G) to inputs (M, 2 G + 2), each within [0, 1].
    """
    values, groups = ordinal_levels(codec.space), codec.groups
    weights = [w / w.sum() for w in (importance.bits, importance.ranks)]

    def encode(rows: np.ndarray) -> np.ndarray:
        places = level_values(values, rows)
        covered = [places[:, :groups] @ weights[0], places[:, groups:] @ weights[1]]
        return np.column_stack([places, *covered])

    return encode


def _values(codec: PlanCodec) -> np.ndarray:
    """float (2 G, K): the width or rank of each choice of each variable; nan if it is not allowed."""
    values = np.full(codec.allowed.shape, np.nan)
    values[: codec.groups, : len(codec.space.bits)] = codec.space.widths
    values[codec.groups :, : len(codec.space.ranks)] = codec.space.ranks
    return np.where(codec.allowed, values, np.nan)


def _share_of_largest(values: np.ndarray) -> np.ndarray:
    values = np.maximum(values, 0.0)
    return values / values.max() if values.max() > 0 else np.ones_like(values)
