"""The strategy contract, strategies by name, and what they share: means of replicates, and fronts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qra_search import plugins
from qra_search.errors import BadInput, convert_to_bad_input, make_type_error
from qra_search.log.state import StudyState
from qra_search.schemas import Plan, Proposal, Trial


@dataclass(frozen=True)
class Estimates:
    """What a strategy believes of the plans evaluated at full fidelity: posterior mean and deviation, each (N,)."""

    plans: tuple[Plan, ...]
    mean: np.ndarray
    std: np.ndarray


class Strategy(ABC):
    """Proposes what to evaluate next.

    `propose` is a pure function of the state: no hidden population, no global randomness. So resuming,
    many workers and tests are the same thing as running. Options are keyword arguments of `__init__`.
    """

    name: str = ""
    searches_extra: bool = False
    """Whether it searches a space's extra parameters too; if not, it gets the space without them."""

    @abstractmethod
    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        """At most `n` proposals, none over `state.largest_budget`, none a repeat of a logged (plan, fidelity,
        seed); fewer or none when the strategy has nothing left to ask. `propose(state, 0)` is []."""

    def estimate(self, state: StudyState) -> Estimates:
        """Belief about every plan evaluated at full fidelity; a strategy with a model overrides this."""
        return average_replicates(state.full)


def average_replicates(trials: Sequence[Trial]) -> Estimates:
    """Mean of each plan's replicates, and its standard error from the pooled variance of all replicates.

    A single observation has no spread of its own: without any replicate in the log the deviation is nan.
    """
    losses: dict[Plan, list[float]] = {}
    for trial in trials:
        losses.setdefault(trial.plan, []).append(trial.loss)
    squares = sum(float(np.var(v) * len(v)) for v in losses.values())
    freedom = sum(len(v) - 1 for v in losses.values())
    sd = (squares / freedom) ** 0.5 if freedom else float("nan")
    mean = np.array([float(np.mean(v)) for v in losses.values()])
    std = np.array([sd / len(v) ** 0.5 for v in losses.values()])
    return Estimates(tuple(losses), mean, std)


def average_losses(trials: Sequence[Trial]) -> dict[Plan, float]:
    """Mean loss of each plan of finished trials, in order of first trial."""
    estimates = average_replicates(trials)
    return dict(zip(estimates.plans, estimates.mean.tolist(), strict=True))


def find_non_dominated(losses: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """int (M,): indices of the points that no other beats in both loss and bytes, cheapest first; O(N log N).

    Of equal points the first is kept.

    >>> find_non_dominated(np.array([3.0, 2.0, 2.5, 1.0]), np.array([10, 20, 20, 30])).tolist()
    [0, 1, 3]
    """
    order = np.lexsort((losses, sizes))
    best = np.minimum.accumulate(losses[order])
    return order[np.append(True, best[1:] < best[:-1])] if len(order) else order


def make_strategy(spec: str | Strategy, /, **options: Any) -> Strategy:
    """A strategy from its name, `FILE.py:NAME`, or itself.

    Raises:
        BadInput: none of these, or an option that the strategy does not take, or not with this value.
        UnknownName: no strategy of that name.
    """
    if isinstance(spec, Strategy):
        if options:
            raise BadInput(
                f"options are given ({', '.join(options)}), and the strategy is an object: pass them to its constructor"
            )
        return spec
    if not isinstance(spec, str):
        raise make_type_error("strategy", spec, "the name of a strategy, or a Strategy, is needed")
    factory = plugins.load_object(spec) if plugins.is_object_path(spec) else plugins.load("strategies", spec)
    with convert_to_bad_input():
        strategy: Strategy = plugins.call_with_options(factory, f"strategy {spec!r}", options)
    strategy.name = spec
    return strategy
