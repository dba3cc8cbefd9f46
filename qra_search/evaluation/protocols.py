"""What an evaluator may offer beside `evaluate`; each is found by `isinstance`, and nothing has to be registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from qra_search.space.space import Plan

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the steps done, and the steps in all."""


@runtime_checkable
class Estimates(Protocol):
    """Says what a search will take before anything is spent; `--dry-run` prints it."""

    def estimate(self) -> Mapping[str, float]:
        """Any of `setup_seconds`, `prior_seconds`, `evaluation_seconds` and `peak_bytes`."""
        ...


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
        progress: Progress | None = None,
    ) -> Any:
        """A result with `test_loss` (nats), `metrics`, `memory_bytes`, `seconds` and `train_loss`; see
        `qra_eval.tuning.final.Tuned`. What was tuned is saved if a folder is given."""
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
