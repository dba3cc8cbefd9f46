"""How a search stands while it runs: best plan for each budget, cost so far, time left; views and trackers ask it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from qra_search.log.trial import Trial
from qra_search.space.pareto import non_dominated
from qra_search.space.space import SearchSpace
from qra_search.study.study import Study

LAST_SHOWN = 5


class BestSoFar:
    """What has been found so far: best plan for each budget by the mean of its losses, cost, and pace."""

    def __init__(
        self,
        budgets: Sequence[int] = (),
        evaluations: float = 0.0,
        prior_cost: float = 0.0,
        space: SearchSpace | None = None,
    ):
        self.space = space
        self.budgets, self.evaluations, self.spent = tuple(budgets), evaluations, prior_cost
        self.prior_cost = prior_cost
        self.last: list[Trial] = []
        self.count = self.failed = 0
        self._losses: dict[str, list[float]] = {}
        self._known: dict[str, Trial] = {}
        self._session, self._session_spent = time.monotonic(), 0.0

    @classmethod
    def of(cls, study: Study) -> BestSoFar:
        """The standing of a study as its log has it."""
        sensitivities = study.sensitivities
        budgets = study.memory_budgets or study.state.budgets
        standing = cls(budgets, study.evaluations, sensitivities.cost if sensitivities else 0.0, study.space)
        for trial in study.log.trials:
            if trial.status != "running":
                standing.add(trial)
        standing._session_spent = 0.0
        return standing

    def add(self, trial: Trial) -> None:
        """Count a finished trial."""
        self.count += 1
        self.spent += trial.charged
        self._session_spent += trial.charged
        self.last = [*self.last, trial][-LAST_SHOWN:]
        if not trial.done:
            self.failed += 1
        elif trial.fidelity >= 1.0:
            self._losses.setdefault(trial.plan.key, []).append(trial.loss)
            self._known[trial.plan.key] = trial

    @property
    def left(self) -> float:
        """Seconds that the rest of the search takes at this session's pace; nan before the first evaluation."""
        if self._session_spent <= 0:
            return math.nan
        pace = (time.monotonic() - self._session) / self._session_spent
        return pace * max(0.0, self.evaluations - self.spent)

    def best(self, budget: int, *, uniform: bool = False) -> tuple[Trial, float] | None:
        """The best plan within a budget and its mean loss; None if none fits."""
        fitting = [
            (trial, sum(losses) / len(losses))
            for key, losses in self._losses.items()
            if size_of(trial := self._known[key]) <= budget and (not uniform or self._is_uniform(trial))
        ]
        return min(fitting, key=lambda pair: pair[1], default=None)

    def _is_uniform(self, trial: Trial) -> bool:
        return self.space is not None and self.space.uniform_choice(trial.plan) is not None

    def gain(self, budget: int) -> float:
        """How much lower the best loss within a budget is than that of the best uniform plan; nan without one."""
        best, rival = self.best(budget), self.best(budget, uniform=True)
        return 1 - best[1] / rival[1] if best and rival and rival[1] else math.nan

    def front(self) -> list[tuple[int, float]]:
        """Bytes and mean loss of the plans that no other beats in both, cheapest first."""
        means = [(size_of(self._known[key]), sum(v) / len(v)) for key, v in self._losses.items()]
        sizes, losses = np.array([size for size, _ in means]), np.array([loss for _, loss in means])
        return [means[i] for i in non_dominated(losses, sizes)]


def size_of(trial: Trial) -> int:
    """Bytes of a trial that ended well."""
    assert trial.evaluation is not None
    return trial.evaluation.memory_bytes
