"""An evaluator whose noise-free loss nobody knows, judged in a benchmark by evaluations of its own with other seeds."""

from __future__ import annotations

from collections.abc import Sequence

from qra_search.evaluation.evaluator import Evaluator
from qra_search.space.space import Plan

JUDGES = (1_000_003, 1_000_033, 1_000_037)
"""Seeds of the evaluations that judge a plan: none that a search is likely to use."""


class MeasuredTruth:
    """Stands for the truth of an evaluator: the mean of full evaluations with seeds of their own, each made once.

    What is handed over is judged on the same held-out data that the search fits, but not by the noise that it saw.
    """

    def __init__(self, evaluator: Evaluator, seeds: Sequence[int] = JUDGES):
        self.evaluator, self.seeds = evaluator, tuple(seeds)
        self.space = evaluator.space
        self._known: dict[str, float] = {}

    def true_loss(self, plan: Plan) -> float:
        """The judged loss of a plan, in nats.

        Raises:
            EvaluationFailed: it cannot be evaluated.
        """
        if plan.key not in self._known:
            losses = [self.evaluator.evaluate(plan, seed=seed).loss for seed in self.seeds]
            self._known[plan.key] = sum(losses) / len(losses)
        return self._known[plan.key]
