"""The allocation: the plan of lowest predicted loss within a budget, from the additive table of the sensitivities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic.dataclasses import dataclass

from qra_search.allocate import knapsack
from qra_search.schemas import MODEL_CONFIG, Plan, Schema, Sensitivities
from qra_search.space.memory import UNQUANTIZED_BITS, BudgetTooSmall
from qra_search.space.space import SearchSpace

FRONT_BUDGETS = 16
"""Budgets that stand for all sizes."""
RELATIVE_DEVIATION = 0.4
"""Deviation of a true difference about the predicted one, as a share of that."""
MIN_DEVIATION = 0.012
"""The least such deviation, in nats, from the rows of an evaluation and from interactions of groups."""
NON_DEFAULT_PENALTY = 1e-9
"""Nats that an extra parameter's other values count more than its default, of which the sensitivities say nothing."""
Z_90 = 1.645
"""Deviations that hold 90% of a normal distribution. With the three numbers all 98 differences measured before tuning
lie within (`benchmarks/results/predictions.jsonl`), and 95% of 1,035 after a dozen steps on GSM8K, in seventeen
searches (`benchmarks/results/study/details.md`). Longer tunings leave far less (docs/study.md)."""


@dataclass(frozen=True, config=MODEL_CONFIG)
class UniformPrediction(Schema):
    """A uniform plan beside another plan, as a rule the allocated one, by what is predicted before tuning.

    Attributes:
        gain: nats of KL divergence from 16 bits that the other plan has less; ranks count by what adapters learn.
        deviation: of the true difference about it, nats.
    """

    plan: Plan
    memory_bytes: int
    gain: float
    deviation: float

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true difference lies with 90%, nats."""
        return self.gain - Z_90 * self.deviation, self.gain + Z_90 * self.deviation

    @property
    def is_certain(self) -> bool:
        return self.interval[0] > 0.0


@dataclass(frozen=True, config=MODEL_CONFIG)
class Allocation(Schema):
    """The plan of lowest predicted loss within a budget, and every uniform plan that fits.

    Attributes:
        predicted_loss: nats above the loss of the model in 16 bits without adapters; negative if adapters gain more
            than quantization costs.
        uniform: cheapest first; empty if none fits.
        is_exact: whether no plan within the budget has a lower predicted loss; False if there are so many like groups
            that only the greedy solution was found.
    """

    plan: Plan
    budget_bytes: int
    memory_bytes: int
    predicted_loss: float
    uniform: tuple[UniformPrediction, ...]
    is_exact: bool = True

    @property
    def best_uniform(self) -> UniformPrediction | None:
        """The uniform plan of lowest predicted loss, the cheapest of equals; None if none fits."""
        return min(self.uniform, key=lambda u: (u.gain, u.memory_bytes), default=None)


def solve(space: SearchSpace, sensitivities: Sensitivities | None, budget_bytes: int) -> Allocation:
    """The best plan within a budget if groups do not interact; `Allocation.is_exact` says if it is known to be.

    Args:
        sensitivities: None: flat ones, by the number of weights of each group.

    Raises:
        BudgetTooSmall: no plan fits.
    """
    table = build_additive_table(space, sensitivities)
    found = _solve_knapsack(space, table, budget_bytes)
    plan = space.decode(found.code)
    uniform = predict_uniform(space, table, plan, space.uniform_plans(budget_bytes))
    uniform.sort(key=lambda u: (u.memory_bytes, u.gain))
    loss = float(compute_table_losses(table, space.encode_many([plan]))[0])
    return Allocation(plan, budget_bytes, space.memory_bytes(plan), loss, tuple(uniform), found.is_exact)


def solve_front(space: SearchSpace, sensitivities: Sensitivities | None) -> list[Allocation]:
    """Allocations within the budgets of `spread_budgets`, cheapest first."""
    return [solve(space, sensitivities, budget) for budget in spread_budgets(space)]


def spread_budgets(space: SearchSpace) -> list[int]:
    """Budgets spread evenly from the bytes of the smallest plan to those of the largest uniform one."""
    largest = max(map(space.memory_bytes, space.uniform_plans()), default=space.memory.maximum)
    budgets = np.linspace(space.memory.minimum, largest, FRONT_BUDGETS).round().astype(int)
    return list(dict.fromkeys(budgets.tolist()))


def list_least_rank_uniform_plans(space: SearchSpace) -> list[Plan]:
    least = min(space.uniform_ranks, default=0)
    return [plan for level in space.bits if (plan := space.uniform(level, least)) is not None]


def predict_uniform(
    space: SearchSpace, table: np.ndarray, plan: Plan, others: Sequence[Plan]
) -> list[UniformPrediction]:
    """Uniform plans beside a plan by a table (G, B, R), whether they fit or not."""
    loss, *values = compute_table_losses(table, space.encode_many([plan, *others])).tolist()
    predictions = []
    for other, value in zip(others, values, strict=True):
        deviation = 0.0 if other == plan else estimate_gain_std(value - loss)
        predictions.append(UniformPrediction(other, space.memory_bytes(other), value - loss, deviation))
    return predictions


def solve_table(space: SearchSpace, table: np.ndarray, budget_bytes: int, *, exact: bool = True) -> Plan:
    """The plan within a budget of the least sum of a table over its groups; raises BudgetTooSmall if none fits.

    Args:
        table: float (G, B, R), loss that each choice of each group adds.
        exact: False takes milliseconds instead of up to seconds, and may be a few exchanges off the best.
    """
    return space.decode(_solve_knapsack(space, table, budget_bytes, exact=exact).code)


def _solve_knapsack(
    space: SearchSpace, table: np.ndarray, budget_bytes: int, *, exact: bool = True
) -> knapsack.Solution:
    cost = np.where(space.memory.allowed, table, np.inf)
    found = knapsack.solve(cost, space.memory.choice_bytes, budget_bytes - space.fixed_bytes, exact=exact)
    if found is None:
        raise BudgetTooSmall(budget_bytes, space.memory.minimum)
    return found


def estimate_gain_std(gain: float) -> float:
    """Deviation in nats of a true difference of losses about the predicted one."""
    return math.hypot(RELATIVE_DEVIATION * gain, MIN_DEVIATION)


def build_additive_table(space: SearchSpace, sensitivities: Sensitivities | None) -> np.ndarray:
    """float (G, B, R): nats of loss that each choice adds to that of the model in 16 bits without adapters.

    Damage falls with rank by `repair`, since an adapter repairs a part of it. `make_flat_sensitivities` stand in for
    sensitivities that are None or all zero.
    """
    sensitivities = ensure_sensitivities(space, sensitivities)
    ranks = np.asarray(space.ranks, dtype=float)
    left = (1.0 + ranks) ** -sensitivities.repair
    table = sensitivities.bits_damage[:, :, None] * left - sensitivities.rank_gain[:, None, :]
    if not space.extra:
        return table
    table = space.pad(table, space.bits_allowed.shape[1])
    for row, parameter in enumerate(space.extra.values(), start=len(space)):
        table[row] = NON_DEFAULT_PENALTY
        table[row, parameter.values.index(parameter.default)] = 0.0
    return table


def compute_table_losses(table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Loss (N,) of encoded plans (N, 2, G) by a table (G, B, R): its entries added up over groups."""
    return np.asarray(table[np.arange(len(table)), codes[:, 0], codes[:, 1]].sum(-1))


def ensure_sensitivities(space: SearchSpace, sensitivities: Sensitivities | None) -> Sensitivities:
    if sensitivities is None or not (sensitivities.bits_damage.any() or sensitivities.rank_gain.any()):
        return make_flat_sensitivities(space)
    return sensitivities


def make_flat_sensitivities(space: SearchSpace) -> Sensitivities:
    """Sensitivities before anything is measured: error falls fourfold a bit, gain grows with log2(1 + rank), and both
    are in proportion to a group's weights."""
    share = np.array([g.weights for g in space.groups], dtype=float)
    share /= share.sum()
    error = np.array([4.0 ** (2 - b) if b < UNQUANTIZED_BITS else 0.0 for b in space.widths])
    gain = np.log2(1.0 + np.asarray(space.ranks, dtype=float)) * 0.01
    return Sensitivities(share[:, None] * error, share[:, None] * gain, source="flat")
