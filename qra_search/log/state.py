"""What a strategy may know of a study: its space, its trials, its budgets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qra_search.errors import format_error
from qra_search.log.journal import LogError, TrialLog
from qra_search.schemas import Plan, Sensitivities, Trial
from qra_search.space.memory import MemoryModel
from qra_search.space.serialization import check_sensitivities
from qra_search.space.space import SearchSpace

DEFAULT_BUDGET_COUNT = 9
"""Budgets between the smallest and the largest plan that stand for the whole front if none is named."""


@dataclass(frozen=True)
class StudyState:
    """What a strategy knows of the study.

    Attributes:
        trials: the log so far, running trials included.
        memory_budgets: bytes that plans are wanted for, ascending; empty: the whole front is wanted.
        seed: seed of the study; take randomness only from `rng`.
        evaluations: what the whole study may spend, in full evaluations.
        fidelities: what the evaluator accepts, ascending; the last is 1.
        charge: full evaluations that the sensitivities count as; none outside the benchmark of strategies.
    """

    space: SearchSpace
    trials: tuple[Trial, ...] = ()
    sensitivities: Sensitivities | None = None
    memory_budgets: tuple[int, ...] = ()
    seed: int = 0
    evaluations: float = 100.0
    fidelities: tuple[float, ...] = (1.0,)
    charge: float = 0.0

    @property
    def memory(self) -> MemoryModel:
        return self.space.memory

    @property
    def largest_budget(self) -> int:
        """The largest budget: no proposal may take more bytes."""
        return self.memory_budgets[-1] if self.memory_budgets else self.memory.maximum

    @cached_property
    def budgets(self) -> tuple[int, ...]:
        """The named budgets, or a sweep from the smallest to the largest plan if none is named."""
        if self.memory_budgets:
            return self.memory_budgets
        low, high = self.memory.minimum, self.memory.maximum
        return tuple(
            int(low + (high - low) * i / (DEFAULT_BUDGET_COUNT - 1)) for i in range(DEFAULT_BUDGET_COUNT)
        )

    @cached_property
    def done(self) -> tuple[Trial, ...]:
        """Trials with a result, at any fidelity."""
        return tuple(t for t in self.trials if t.done)

    @cached_property
    def full(self) -> tuple[Trial, ...]:
        """Trials with a result at full fidelity."""
        return tuple(t for t in self.done if t.fidelity >= 1.0)

    @cached_property
    def pending(self) -> tuple[Trial, ...]:
        return tuple(t for t in self.trials if t.status == "running")

    @cached_property
    def seen(self) -> frozenset[Plan]:
        """Every plan in the log, whatever became of it and at whatever fidelity."""
        return frozenset(t.plan for t in self.trials)

    @cached_property
    def spent(self) -> float:
        """Full evaluations spent so far: every trial at its charge."""
        return self.charge + sum(t.cost for t in self.trials)

    def rng(self, offset: int = 0) -> np.random.Generator:
        """Generator of the proposal number `len(trials) + offset`; the only source of randomness."""
        return np.random.default_rng([self.seed, len(self.trials) + offset])


def read_state(log: TrialLog) -> StudyState:
    """The state of the study that wrote a journal, without its evaluator.

    Raises LogError if no search has begun in it, or it holds what no study writes, such as plans that its space does
    not allow.
    """
    if log.get_meta("space") is None:
        raise LogError(f"{log.path} holds no search space, so no search was started there")
    try:
        space = SearchSpace.from_dict(log.get_meta("space"))
        data = log.get_meta("sensitivities")
        sensitivities = check_sensitivities(space, Sensitivities.from_dict(data)) if data else None
        for trial in log:
            space.encode(trial.plan)  # ValueError for a plan of another space
        return StudyState(
            space,
            log.trials,
            sensitivities,
            tuple(map(int, log.get_meta("budgets") or ())),
            int(log.get_meta("seed") or 0),
            float((log.get_meta("study") or {}).get("evaluations", 100.0)),
        )
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise LogError(
            f"{log.path} is damaged, or has lines of several searches ({format_error(error)}): "
            "restore it from a copy, or use another folder"
        ) from None
