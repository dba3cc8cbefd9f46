"""What an evaluator may also do, beside the contract of `Evaluator`: each is asked for with `isinstance`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from qra_search.space.space import Plan

Progress = Callable[[str, int, int], None]
"""Called with the name of a piece of work, how many steps of it are done, and of how many."""


@runtime_checkable
class ReportsProgress(Protocol):
    """Reports on all that takes long before the first evaluation, to `progress` unless it is None."""

    progress: Progress | None


@runtime_checkable
class EstimatesCost(Protocol):
    """Foretells what a search takes."""

    def estimate(self) -> Mapping[str, float]:
        """Any of `setup_seconds`, `prior_seconds`, `evaluation_seconds` and `peak_bytes`; spends nothing."""
        ...


@runtime_checkable
class ScoresUntuned(Protocol):
    """Has a loss of the model as it was loaded, neither quantized nor tuned.

    Attributes:
        task: whose `split("validation")` gives the examples, each with a prompt and an answer.
    """

    task: Any

    def untuned_loss(self) -> float:
        """Validation loss in nats."""
        ...


class Tuned(Protocol):
    """What full tuning of one plan gives."""

    plan: Plan
    seed: int
    steps: int
    test_loss: float
    metrics: dict[str, float]
    memory_bytes: int
    seconds: float


@runtime_checkable
class TunesPlans(Protocol):
    """Tunes a plan in full and measures it on test data."""

    def tune(
        self,
        plan: Plan,
        *,
        seed: int = 0,
        steps: int | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> Tuned:
        """Tune with a seed for so many steps, and save into a folder if one is given."""
        ...
