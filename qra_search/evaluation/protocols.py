"""What an evaluator may offer beside `evaluate`; each is found by `isinstance`, and nothing has to be registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from qra_search.errors import RunFailed
from qra_search.space.space import Plan

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the steps done, and the steps in all."""
Figures = Callable[[int, Mapping[str, float]], None]
"""Called with a step, counted from 1, and its figures by name."""


@runtime_checkable
class Estimates(Protocol):
    """Says what a search will take before anything is spent; `--dry-run` prints it."""

    def estimate(self) -> Mapping[str, Any]:
        """Any of `setup_seconds`, `prior_seconds`, `evaluation_seconds`, `peak_bytes`, `disk_bytes`, and `phases`: of
        each phase of a run by name, `{"device": bytes, "host": bytes}` at its peak."""
        ...


@dataclass(frozen=True)
class RowCount:
    """Rows of one split.

    Attributes:
        asked: that the settings ask for.
        had: that there are of these.
        cut: of these, rows that are longer than is allowed, and lose a part.
        longest: tokens of the longest one, before it is cut.
    """

    asked: int
    had: int
    cut: int = 0
    longest: int = 0


@runtime_checkable
class CountsRows(Protocol):
    """Says how many rows it is asked for and has, by split: `calibration` (to tune on), `validation` and `test`."""

    def row_counts(self) -> Mapping[str, RowCount]: ...


@runtime_checkable
class ForetellsCosts(Protocol):
    """Says in a moment what a search will cost; `Estimates` takes longer and says more."""

    def prior_charge(self) -> float:
        """Full evaluations that measuring the prior is charged as, before it is measured."""
        ...

    def evaluation_seconds(self) -> float:
        """Seconds of a full evaluation, roughly."""
        ...


@runtime_checkable
class FitsCards(Protocol):
    """Says which graphics cards a run fits; `qra doctor --model` prints it."""

    def cards(self) -> Sequence[Mapping[str, Any]]:
        """For each card: its `name` and `bytes`, the `settings` with which a run fits it, as words, the `phase` that
        then takes most and its `peak_bytes`; `settings` is None if nothing fits."""
        ...


class Tuned(Protocol):
    """What full tuning of one plan gives: loss on test data in nats, the task's own figures, bytes, wall time."""

    @property
    def plan(self) -> Plan: ...
    @property
    def seed(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def test_loss(self) -> float: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def seconds(self) -> float: ...


@runtime_checkable
class MeasuredByRow(Protocol):
    """A tuned plan that says its loss on each test row, from which intervals of differences are made."""

    @property
    def row_nats(self) -> Sequence[float]:
        """Summed loss of each row."""
        ...

    @property
    def row_tokens(self) -> Sequence[int]:
        """Labelled tokens of each row."""
        ...


@runtime_checkable
class ShowsSamples(Protocol):
    """A tuned plan that shows a few generated answers, from before its tuning and after."""

    @property
    def samples(self) -> Sequence[Mapping[str, str]]:
        """Each with `prompt`, `wanted`, `before` and `after`."""
        ...


@runtime_checkable
class ScoredOnRows(Protocol):
    """A tuned plan that says on how many test rows the task's own figures are, from which intervals are made."""

    @property
    def scored(self) -> int: ...


NO_ADAPTER = "the plan has rank 0 everywhere, so there is no adapter to tune and save: give one with some rank above 0"


class ReloadFailed(RunFailed):
    """What full tuning saved does not load back as it was tuned; `tuned` is what had been measured by then."""

    def __init__(self, reason: str, tuned: Tuned):
        super().__init__(reason)
        self.tuned = tuned


@runtime_checkable
class Tunes(Protocol):
    """Tunes a plan in full and measures it on test data; `qra finetune` and `qra evaluate` need it."""

    def tune(
        self,
        plan: Plan,
        *,
        seed: int = 0,
        steps: int | None = None,
        folder: str | Path | None = None,
        kept: Path | None = None,
        figures: Figures | None = None,
        progress: Progress | None = None,
    ) -> Tuned:
        """Tune for `steps` optimizer steps (None: as the settings say), and save the result if a folder is given.

        Args:
            kept: a folder of this tuning's own, for what it is resumed from if it is broken off, and its curve.
            figures: called with the figures of each step: `loss` and, where they are known, others.

        Raises:
            EvaluationFailed: the plan cannot be tuned; `diverged: ...` and `out of memory: ...` are shown as such.
            ReloadFailed: the result was saved, and what was saved is not what was tuned.
        """
        ...


@runtime_checkable
class ShowsUntuned(Protocol):
    """Can show something in seconds, before minutes of quantizing; `qra demo` does."""

    def example(self) -> str:
        """One example of the task, with its answer."""
        ...

    def untuned_loss(self) -> float:
        """Loss in nats of the model as it was loaded."""
        ...


@runtime_checkable
class ReportsProgress(Protocol):
    """Reports what takes long in it; whoever runs a search sets `progress` if it is None."""

    progress: Progress | None
