"""The strategy contract: a pure function from the state of a study to the next proposals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from qra_search.evaluation import Prior
from qra_search.memory import MemoryModel
from qra_search.space import Plan, SearchSpace
from qra_search.trials import Proposal, Trial

DEFAULT_SWEEP = 9
"""Budgets between the smallest and the largest plan that stand for the whole front where none is named."""


@dataclass(frozen=True)
class StudyState:
    """All that a strategy may know.

    Attributes:
        space: what is searched.
        prior: sensitivity of the groups, or None.
        trials: the log so far, running trials included.
        memory_budgets: bytes that plans are wanted for, ascending; empty: the whole front is wanted.
        seed: seed of the study; take randomness only from `rng`.
        evaluations: what the whole study may spend, in full evaluations (the prior's cost included).
        fidelities: what the evaluator accepts, ascending; the last is 1.
    """

    space: SearchSpace
    trials: tuple[Trial, ...] = ()
    prior: Prior | None = None
    memory_budgets: tuple[int, ...] = ()
    seed: int = 0
    evaluations: float = 100.0
    fidelities: tuple[float, ...] = (1.0,)

    @property
    def memory(self) -> MemoryModel:
        """Exact bytes of any plan."""
        return self.space.memory

    @property
    def memory_limit(self) -> int:
        """The largest budget: no proposal may take more bytes."""
        return self.memory_budgets[-1] if self.memory_budgets else self.memory.maximum

    @cached_property
    def budgets(self) -> tuple[int, ...]:
        """The named budgets, or a sweep from the smallest to the largest plan where none is named."""
        if self.memory_budgets:
            return self.memory_budgets
        low, high = self.memory.minimum, self.memory.maximum
        return tuple(int(low + (high - low) * i / (DEFAULT_SWEEP - 1)) for i in range(DEFAULT_SWEEP))

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
        """Trials that are running."""
        return tuple(t for t in self.trials if t.status == "running")

    @cached_property
    def seen(self) -> frozenset[str]:
        """Keys of every plan in the log, whatever became of it and at whatever fidelity."""
        return frozenset(t.plan.key for t in self.trials)

    @cached_property
    def spent(self) -> float:
        """Full evaluations spent so far: the prior, and every trial at its charge."""
        return (self.prior.cost if self.prior else 0.0) + sum(t.charged for t in self.trials)

    def rng(self, offset: int = 0) -> np.random.Generator:
        """Generator of the proposal number `len(trials) + offset`; the only source of randomness."""
        return np.random.default_rng([self.seed, len(self.trials) + offset])

    def next_seed(self, plan: Plan) -> int:
        """Seed for one more evaluation of a plan: new for every replicate, the study's own for the first."""
        return self.seed + self._counts[plan.key]

    @cached_property
    def _counts(self) -> Counter[str]:
        return Counter(t.plan.key for t in self.trials if t.fidelity >= 1.0)


@dataclass(frozen=True)
class Estimates:
    """What a strategy believes of the plans evaluated at full fidelity: posterior mean and deviation, each (N,)."""

    plans: tuple[Plan, ...]
    mean: np.ndarray
    std: np.ndarray
    extra: dict[str, Any] = field(default_factory=dict)


class Strategy(ABC):
    """Proposes what to evaluate next.

    `propose` is a pure function of the state: no hidden population, no global randomness. So resuming,
    many workers and tests are the same thing as running. Options are keyword arguments of `__init__`.
    """

    name: str = ""

    @abstractmethod
    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        """At most `n` proposals, none over `state.memory_limit`, none a repeat of a logged (plan, fidelity,
        seed); fewer or none when the strategy has nothing left to ask."""

    def estimate(self, state: StudyState) -> Estimates:
        """Belief about every plan evaluated at full fidelity; a strategy with a model overrides this."""
        return mean_estimates(state.full)


def mean_estimates(trials: Sequence[Trial]) -> Estimates:
    """Mean of each plan's replicates, and its standard error from the pooled variance of all replicates.

    A single observation has no spread of its own: without any replicate in the log the deviation is nan.
    """
    losses: dict[str, list[float]] = {}
    plans: dict[str, Plan] = {}
    for trial in trials:
        plans[trial.plan.key] = trial.plan
        losses.setdefault(trial.plan.key, []).append(trial.loss)
    squares = sum(float(np.var(v) * len(v)) for v in losses.values())
    freedom = sum(len(v) - 1 for v in losses.values())
    sd = (squares / freedom) ** 0.5 if freedom else float("nan")
    mean = np.array([float(np.mean(v)) for v in losses.values()])
    std = np.array([sd / len(v) ** 0.5 for v in losses.values()])
    return Estimates(tuple(plans.values()), mean, std)
