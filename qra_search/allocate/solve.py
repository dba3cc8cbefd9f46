"""The allocation: the plan of lowest predicted loss within a budget, beside every uniform plan that fits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qra_search.allocate import knapsack
from qra_search.allocate.sensitivities import Sensitivities
from qra_search.allocate.table import additive_table, table_losses
from qra_search.space.space import Plan, SearchSpace

RELATIVE_DEVIATION = 0.4
"""Deviation of a true difference of losses about the predicted one, as a share of that."""
LEAST_DEVIATION = 0.012
"""The least such deviation, in nats, from the rows of an evaluation and from interactions of groups."""
Z_90 = 1.645
"""Deviations that hold 90% of a normal distribution. With the three numbers 95% of 1,035 differences between mixed and
uniform plans of seventeen recorded searches lie within, all 133 of those four searches that came after they were chosen
(`benchmarks/results/study/details.md`)."""


@dataclass(frozen=True)
class UniformPrediction:
    """A uniform plan that fits the budget, and its predicted loss less that of the allocated plan.

    Attributes:
        gain: nats of loss after a short tuning; what the allocated plan is better by.
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
        """Whether the whole interval is above zero."""
        return self.interval[0] > 0.0


@dataclass(frozen=True)
class Allocation:
    """The plan of lowest predicted loss within a budget, and every uniform plan that fits.

    Attributes:
        predicted_loss: nats above the loss of the model in 16 bits without adapters; negative if adapters gain more
            than quantization costs.
        uniform: cheapest first; empty if none fits.
    """

    plan: Plan
    budget_bytes: int
    memory_bytes: int
    predicted_loss: float
    uniform: tuple[UniformPrediction, ...]

    @property
    def best_uniform(self) -> UniformPrediction | None:
        """The uniform plan of lowest predicted loss, the cheapest of equals; None if none fits."""
        return min(self.uniform, key=lambda u: (u.gain, u.memory_bytes), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        uniform = [
            {"plan": u.plan.to_dict(), "memory_bytes": u.memory_bytes, "predicted_gain": u.gain,
             "interval": list(u.interval)}
            for u in self.uniform
        ]  # fmt: skip
        return {
            "budget": self.budget_bytes,
            "plan": self.plan.to_dict(),
            "memory_bytes": self.memory_bytes,
            "predicted_loss": self.predicted_loss,
            "uniform": uniform,
        }


def solve(space: SearchSpace, sensitivities: Sensitivities | None, budget_bytes: int) -> Allocation:
    """The best plan within a budget if groups do not interact, solved exactly.

    Args:
        sensitivities: None: flat ones, by the number of weights of each group.

    Raises:
        BudgetTooSmall: no plan fits.
    """
    table = additive_table(space, sensitivities)
    plan = solve_table(space, table, budget_bytes)
    fitting = space.uniform_plans(budget_bytes)
    loss, *others = table_losses(table, space.encode_many([plan, *fitting])).tolist()
    uniform = [
        UniformPrediction(other, space.memory_bytes(other), value - loss,
                          0.0 if other == plan else gain_deviation(value - loss))
        for other, value in zip(fitting, others, strict=True)
    ]  # fmt: skip
    uniform.sort(key=lambda u: (u.memory_bytes, u.gain))
    return Allocation(plan, budget_bytes, space.memory_bytes(plan), loss, tuple(uniform))


def solve_table(space: SearchSpace, table: np.ndarray, budget_bytes: int) -> Plan:
    """The plan within a budget of the least sum of a table over its groups.

    Args:
        table: float (G, B, R), loss that each choice of each group adds.

    Raises:
        BudgetTooSmall: no plan fits.
    """
    space.memory.check_budget(budget_bytes)
    cost = np.where(space.memory.allowed, table, np.inf)
    code = knapsack.solve(cost, space.memory.choice, budget_bytes - space.fixed_bytes)
    assert code is not None  # the smallest plan fits
    return space.decode(code)


def gain_deviation(gain: float) -> float:
    """Deviation in nats of a true difference of losses about the predicted one."""
    return math.hypot(RELATIVE_DEVIATION * gain, LEAST_DEVIATION)
