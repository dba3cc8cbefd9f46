"""Evaluated plans: the best within a budget against the best uniform one, and an unevaluated plan that beats both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qra_search.allocate.solve import Z_90, build_additive_table, compute_table_losses, estimate_gain_std
from qra_search.schemas import Plan, Sensitivities
from qra_search.space.space import SearchSpace


@dataclass(frozen=True)
class EvaluatedPlan:
    """A plan that was evaluated at full fidelity, or one that is predicted to be better.

    Attributes:
        loss: posterior mean of the held-out loss, by the strategy's model if it has one.
        loss_std: its posterior deviation; nan if unknown.
        memory_bytes: exact bytes.
        observed: mean of the observed losses; nan if there are none.
        evaluations: how many there are; 0 if its loss is only predicted.
    """

    plan: Plan
    loss: float
    loss_std: float
    memory_bytes: int
    observed: float
    evaluations: int = 1


@dataclass(frozen=True)
class LossChange:
    """A loss against another, as a share of it: -0.1 is 10% lower.

    Attributes:
        interval: at 95%; None if nothing tells it.
    """

    share: float
    interval: tuple[float, float] | None = None

    @property
    def is_lower(self) -> bool:
        """Whether the loss is lower than the other, be it by chance."""
        return self.share < 0

    @property
    def may_be_chance(self) -> bool:
        """Whether the interval holds zero."""
        return self.interval is not None and self.interval[0] <= 0.0 <= self.interval[1]


@dataclass(frozen=True)
class UniformComparison:
    """The best plan within a budget beside the best uniform plan within it, by estimated validation losses."""

    data: ClassVar[str] = "validation"
    budget_bytes: int
    chosen: EvaluatedPlan
    baseline: EvaluatedPlan | None

    @property
    def change(self) -> LossChange | None:
        """The chosen plan's loss against the baseline's, within two standard errors of the difference; None without
        another plan, or if its loss is zero."""
        one = self.chosen
        two = self.baseline
        if two is None or two.plan == one.plan or not two.loss:
            return None
        share = (one.loss - two.loss) / abs(two.loss)
        noise = math.hypot(one.loss_std, two.loss_std) / abs(two.loss)
        return LossChange(share, (share - 2 * noise, share + 2 * noise) if math.isfinite(noise) else None)


def predict_better_plan(
    space: SearchSpace,
    sensitivities: Sensitivities,
    plan: Plan,
    best: EvaluatedPlan,
    known: Sequence[EvaluatedPlan],
) -> EvaluatedPlan | None:
    """The allocated plan with its predicted loss, if it is not evaluated and is predicted to be lower than the best
    evaluated one by more than may be chance; else None.

    Predicted differences are scaled by the slope of the observed ones over the predicted ones, at most 1; the scatter
    about that slope adds to their deviation.
    """
    if any(candidate.plan == plan for candidate in known):
        return None
    plans = [plan, best.plan, *(candidate.plan for candidate in known)]
    own, least, *others = compute_table_losses(
        build_additive_table(space, sensitivities), space.encode_many(plans)
    )
    predicted = np.array(others) - least
    true = np.array([candidate.loss for candidate in known]) - best.loss
    trust = float(np.clip(predicted @ true / (predicted @ predicted), 0.0, 1.0)) if predicted.any() else 1.0
    gain = trust * float(least - own)
    scatter = float(np.sqrt(np.mean((true - trust * predicted) ** 2)))
    deviation = math.hypot(estimate_gain_std(gain), scatter)
    if gain <= Z_90 * deviation:
        return None
    size = space.memory_bytes(plan)
    return EvaluatedPlan(plan, best.loss - gain, deviation, size, observed=math.nan, evaluations=0)
