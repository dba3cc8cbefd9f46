"""What a running search has found and spent so far; views and trackers ask it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qra_search.log.trial import Trial
from qra_search.space.space import Plan, SearchSpace
from qra_search.study.study import Study


class BestSoFar:
    """Best plan for each budget by the mean of its losses, and what was spent."""

    def __init__(self, budgets: Sequence[int] = (), spent: float = 0.0, space: SearchSpace | None = None):
        self.budgets, self.spent, self.space = tuple(budgets), spent, space
        self.count = self.failed = 0
        self.last: Trial | None = None
        self._losses: dict[Plan, list[float]] = {}
        self._known: dict[Plan, Trial] = {}

    @classmethod
    def of(cls, study: Study, trials: Iterable[Trial] | None = None) -> BestSoFar:
        """What a study has found in its trials; default: in all of its log."""
        best = cls(study.memory_budgets or study.state.budgets, study.state.charge, study.space)
        for trial in study.log.trials if trials is None else trials:
            if trial.status != "running":
                best.add(trial)
        return best

    def add(self, trial: Trial) -> None:
        """Count a finished trial."""
        self.count += 1
        self.spent += trial.fidelity
        self.last = trial
        if not trial.done:
            self.failed += 1
        elif trial.fidelity >= 1.0:
            self._losses.setdefault(trial.plan, []).append(trial.loss)
            self._known[trial.plan] = trial

    def best(self, budget: int, *, uniform: bool = False) -> tuple[Trial, float] | None:
        """The best plan within a budget and its mean loss; None if none fits."""
        fitting = [
            (trial, sum(self._losses[key]) / len(self._losses[key]))
            for key, trial in self._known.items()
            if trial.evaluation is not None
            and trial.evaluation.memory_bytes <= budget
            and (not uniform or (self.space is not None and self.space.uniform_choice(trial.plan) is not None))
        ]
        return min(fitting, key=lambda pair: pair[1], default=None)
