"""A plan that was evaluated, and what is believed of it."""

from __future__ import annotations

from dataclasses import dataclass

from qra_search.space.space import Plan


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
        if self.uniform is None or not self.uniform.loss:
            return float("nan")
        return 1.0 - self.best.loss / self.uniform.loss
