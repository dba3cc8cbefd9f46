"""What is known of plans: of those evaluated, and, before anything is tuned, what the sensitivities foretell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.space.space import Plan, SearchSpace
from qra_search.strategies.additive import additive_plan
from qra_search.surrogates.sensitivity_table import sensitivity_table, table_losses

FACTOR = 0.4
"""Deviation of a true difference of losses about the predicted one, as a share of that."""
LEAST = 0.012
"""The least such deviation, in nats: what the rows of an evaluation and interactions of groups bring in any case."""
WITHIN = 1.645
"""Deviations that hold 90% of a normal distribution. With the three numbers 95% of 1,035 differences between mixed and
uniform plans of seventeen recorded searches lie within, all 133 of those four searches that came after they were chosen
(`benchmarks/results/study/details.md`)."""


@dataclass(frozen=True)
class EvaluatedPlan:
    """A plan that was evaluated at full fidelity, or is foretold to be better than all that were.

    Attributes:
        loss: posterior mean of the held-out loss, by the strategy's model if it has one.
        loss_std: its posterior deviation; nan if nothing tells it.
        memory_bytes: exact bytes.
        observed: mean of the observed losses; nan if there are none.
        evaluations: how many there are; 0 if its loss is only foretold.
    """

    plan: Plan
    loss: float
    loss_std: float
    memory_bytes: int
    observed: float
    evaluations: int = 1


@dataclass(frozen=True)
class Comparison:
    """The best plan under a budget against the best uniform plan under it. `gain` is how much lower its loss
    is, as a share of the uniform plan's loss; nan without one, or if that is zero."""

    budget: int
    best: EvaluatedPlan
    uniform: EvaluatedPlan | None

    @property
    def beats_uniform(self) -> bool:
        return self.uniform is None or self.best.loss < self.uniform.loss

    @property
    def gain(self) -> float:
        return math.nan if self.uniform is None else lower_by(self.best.loss, self.uniform.loss)

    @property
    def noise(self) -> float:
        """Standard error of the difference of the two losses; nan without a uniform plan."""
        return math.nan if self.uniform is None else math.hypot(self.best.loss_std, self.uniform.loss_std)

    @property
    def doubtful(self) -> bool:
        """Whether the difference may be chance: it is below twice its standard error."""
        if self.uniform is None or self.best.plan == self.uniform.plan:
            return False
        return abs(self.uniform.loss - self.best.loss) < 2 * self.noise


@dataclass(frozen=True)
class UniformPrediction:
    """A uniform plan that fits, and by how much its predicted loss is above that of the plan chosen.

    Attributes:
        gain: nats of loss after a short tuning; what the plan chosen is better by.
        deviation: of the true difference about it, nats.
    """

    plan: Plan
    memory_bytes: int
    gain: float
    deviation: float

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true difference lies with 90%, nats."""
        return self.gain - WITHIN * self.deviation, self.gain + WITHIN * self.deviation

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval[0] > 0.0


@dataclass(frozen=True)
class Forecast:
    """The plan of lowest predicted loss within a budget, and every uniform plan that fits.

    Attributes:
        uniform: cheapest first; empty if none fits.
    """

    budget: int
    plan: Plan
    memory_bytes: int
    uniform: tuple[UniformPrediction, ...]

    @property
    def rival(self) -> UniformPrediction | None:
        """The uniform plan of lowest predicted loss, the cheapest of equals; None if none fits."""
        return min(self.uniform, key=lambda u: (u.gain, u.memory_bytes), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "budget": self.budget,
            "plan": self.plan.to_dict(),
            "memory_bytes": self.memory_bytes,
            "uniform": [
                {
                    "plan": u.plan.to_dict(), "memory_bytes": u.memory_bytes, "predicted_gain": u.gain,
                    "interval": list(u.interval),
                }
                for u in self.uniform
            ],
        }  # fmt: skip


def solve_plan(space: SearchSpace, sensitivities: Sensitivities, budget: int) -> Forecast | None:
    """The knapsack over the sensitivities, solved exactly, beside the uniform plans; None if nothing fits.

    Args:
        budget: bytes.
    """
    plan = additive_plan(space, sensitivity_table(space, sensitivities), budget)
    if plan is None:
        return None
    fitting = [uniform for uniform in space.uniform_plans() if space.memory_bytes(uniform) <= budget]
    losses = table_losses(space, sensitivities, [plan, *fitting])
    uniform = []
    for other, loss in zip(fitting, losses[1:], strict=True):
        gain = float(loss - losses[0])
        deviation = 0.0 if other == plan else deviation_of(gain)
        uniform.append(UniformPrediction(other, space.memory_bytes(other), gain, deviation))
    uniform.sort(key=lambda u: (u.memory_bytes, u.gain))
    return Forecast(budget, plan, space.memory_bytes(plan), tuple(uniform))


def lower_by(loss: float, other: float) -> float:
    """How much lower a loss is than another, as a share of the other's size; nan if that is zero."""
    return (other - loss) / abs(other) if other else math.nan


def deviation_of(gain: float) -> float:
    """Deviation in nats of a true difference of losses about the predicted one."""
    return math.hypot(FACTOR * gain, LEAST)


def surely_better(
    space: SearchSpace, sensitivities: Sensitivities, budget: int, best: EvaluatedPlan, seen: Sequence[EvaluatedPlan]
) -> EvaluatedPlan | None:
    """The sensitivities' own plan, with the loss that they foretell, if it is not evaluated and predicted to be better
    than the best that is by more than may be chance; else None.

    Predictions count by as much as came true of them: the slope of the losses seen over those predicted, at most 1. How
    far those seen lie from that slope is chance as well.
    """
    plan = additive_plan(space, sensitivity_table(space, sensitivities), budget)
    if plan is None or any(known.plan == plan for known in seen):
        return None
    own, least, *others = table_losses(space, sensitivities, [plan, best.plan, *(known.plan for known in seen)])
    predicted, true = np.array(others) - least, np.array([known.loss for known in seen]) - best.loss
    trust = float(np.clip(predicted @ true / (predicted @ predicted), 0.0, 1.0)) if predicted.any() else 1.0
    gain = trust * float(least - own)
    scatter = float(np.sqrt(np.mean((true - trust * predicted) ** 2)))
    deviation = math.hypot(deviation_of(gain), scatter)
    if gain <= WITHIN * deviation:
        return None
    size = space.memory_bytes(plan)
    return EvaluatedPlan(plan, best.loss - gain, deviation, size, observed=math.nan, evaluations=0)
