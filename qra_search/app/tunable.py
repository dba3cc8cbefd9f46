"""What an application asks of a model beyond a search: its rows and costs, and tuning a plan in full."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qra_search.evaluator import Evaluator, Progress
from qra_search.schemas import Plan, TuningRecord

StepFigures = Mapping[str, float]
"""Figures of a training step: `loss` and, if known, others."""


@dataclass(frozen=True)
class RowCount:
    """Rows of one split.

    Attributes:
        asked: that the settings ask for.
        had: that there are of these.
        cut: of these, rows that are longer than is allowed, and lose a part.
        longest: tokens of the longest one, before it is cut.
        available: rows of the whole split; 0 if they were not counted.
    """

    asked: int
    had: int
    cut: int = 0
    longest: int = 0
    available: int = 0


@dataclass(frozen=True)
class RateTrial:
    """A short tuning at a learning rate.

    Attributes:
        steps: that it was to have; `made` fewer if it diverged or ended early.
        loss: on validation rows; estimated of one that ended early, inf of one that diverged.
        curve: mean training losses of each tenth of the steps.
    """

    rate: float
    steps: int
    made: int
    loss: float
    curve: Sequence[float] = ()


class TunableEvaluator(Evaluator):
    """An evaluator of a model, whose plans can be tuned in full, saved and served."""

    @abstractmethod
    def row_counts(self) -> Mapping[str, RowCount]:
        """Rows asked for and had, by split: `train`, `validation` and `test`."""

    @abstractmethod
    def sensitivity_cost(self) -> float:
        """Full evaluations that measuring the sensitivities is charged as, without measuring it."""

    @abstractmethod
    def evaluation_seconds(self) -> float:
        """Seconds of a full evaluation, roughly, without running one."""

    @abstractmethod
    def estimate_search_cost(self) -> Mapping[str, Any]:
        """What a run will take; `--dry-run` prints it.

        Any of `setup_seconds`, `sensitivities_seconds`, `evaluation_seconds`, `tuning_seconds`; and `phases`: of each
        phase of a run by name, `{"device": bytes, "host": bytes}` at its peak.
        """

    @abstractmethod
    def list_fitting_cards(self) -> Sequence[Mapping[str, Any]]:
        """Which graphics cards a run fits; `qra doctor --model` prints it.

        For each card: its `name` and `bytes`, in `settings` words for those with which a run fits it (None: nothing
        fits), the `phase` that then takes most and its `peak_bytes`.
        """

    @abstractmethod
    def render_row(self) -> Sequence[tuple[str, bool]] | None:
        """One row of tuning as the model sees it: its text in pieces, each with whether it is learnt."""

    @abstractmethod
    def tune(
        self,
        plan: Plan,
        *,
        seed: int = 0,
        steps: int | None = None,
        folder: Path | None = None,
        on_step: Callable[[int, StepFigures], None] | None = None,
        progress: Progress | None = None,
    ) -> TuningRecord:
        """Tune a plan in full and measure it on test rows.

        A tuning that diverges, or whose saved adapter does not load back as it was tuned, has a record that says so.

        Args:
            plan: of `space`, or of its `unquantized`.
            steps: of the optimizer; None: as the settings say.
            folder: of this tuning alone (`qra_search.app.tuning_folder`): for its curve, the checkpoint that it is
                resumed from, its adapter and quantized base; None: nothing is written.
            on_step: called with each step, counted from 1, and its figures.

        Raises:
            EvaluationFailed: the plan could not be tuned this time (`out of memory: ...`).
        """

    @abstractmethod
    def tuning_steps(self) -> int:
        """Steps of a full tuning by the settings."""

    @abstractmethod
    def set_learning_rate(self, rate: float | Literal["auto"]) -> None:
        """From here on `training.learning_rate` is this one."""

    @abstractmethod
    def try_rate(
        self,
        plan: Plan,
        rate: float,
        steps: int,
        *,
        beside: RateTrial | None = None,
        progress: Progress | None = None,
    ) -> RateTrial:
        """Tune a plan at a learning rate for a few steps, and keep nothing but its loss.

        Args:
            beside: another trial of as many steps; one that is far behind it at its middle ends there.
        """

    @abstractmethod
    def tuning_data(self) -> str:
        """Identifies all rows that a full tuning may see, and those of its test; empty if that is not known."""

    @abstractmethod
    def measure_untuned(self) -> TuningRecord | None:
        """Test figures of the model as it was loaded, as a plan of `space.unquantized`; None if it cannot say."""

    @abstractmethod
    def write_base(self, plan: Plan, folder: Path) -> None:
        """Write the quantized base of an untuned plan, and its `plan.json`."""


def count_rows(evaluator: Evaluator) -> Mapping[str, RowCount]:
    """Rows by split; empty if the evaluator does not know them."""
    return evaluator.row_counts() if isinstance(evaluator, TunableEvaluator) else {}


def render_row(evaluator: Evaluator) -> Sequence[tuple[str, bool]]:
    """One row of tuning as the model sees it; empty if there is none."""
    return (evaluator.render_row() or ()) if isinstance(evaluator, TunableEvaluator) else ()
