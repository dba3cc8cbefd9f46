"""The evaluator: says what a plan is worth, and, if it can, tunes one in full."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from qra_search.errors import BadInput, EvaluationFailed, RunFailed
from qra_search.schemas import Evaluation, Plan, Sensitivities, TuningRecord
from qra_search.space.space import SearchSpace

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the steps done, and the number of steps."""
StepFigures = Mapping[str, float]
"""Figures of a training step: `loss` and, if known, others."""
NO_ADAPTER = (
    "the plan has rank 0 everywhere, so there is no adapter to tune and save: give one with some rank above 0"
)
CANNOT_TUNE = "cannot fine-tune a plan, it only estimates the loss: use a run of the evaluator quantized-lora"


@dataclass(frozen=True)
class RowCount:
    """Rows of one split.

    Attributes:
        asked: that the settings ask for.
        had: that there are of these.
        cut: of these, rows that are longer than is allowed, and lose a part.
        longest: tokens of the longest one, before it is cut.
        conflicting: of these, rows whose prompt occurs again with another answer; `conflicting_prompt` is one.
        available: rows of the whole split; 0 if they were not counted.
    """

    asked: int
    had: int
    cut: int = 0
    longest: int = 0
    conflicting: int = 0
    conflicting_prompt: str = ""
    available: int = 0


class Evaluator(ABC):
    """Says what a plan is worth.

    A subclass sets `space` and implements `evaluate`. The same plan, fidelity and seed give the same loss. All other
    methods may be left out: what they do by default says that the evaluator cannot do it.

    Attributes:
        fidelities: that `evaluate` accepts, ascending; the last is 1.
        progress: called with what takes long; whoever runs a search sets it if it is None.
    """

    space: SearchSpace
    fidelities: tuple[float, ...] = (1.0,)
    progress: Progress | None = None

    @abstractmethod
    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        """Evaluate one plan of the space.

        Raises:
            EvaluationFailed: it cannot be evaluated (out of memory, not finite); the search continues.
        """

    def sensitivities(self) -> Sensitivities | None:
        """Sensitivity of the groups, measured once and cached; None if there is none."""
        return None

    def describe(self) -> dict[str, Any]:
        """What identifies the evaluator (model, data, settings), as plain data. A log refuses another one."""
        return {}

    def close(self) -> None:
        """Free what the evaluator holds."""
        return None

    def estimate(self) -> Mapping[str, Any]:
        """What a run will take; `--dry-run` prints it.

        Any of `setup_seconds`, `sensitivities_seconds`, `evaluation_seconds`, `tuning_seconds`, `disk_bytes`; `phases`:
        of each phase of a run by name, `{"device": bytes, "host": bytes}` at its peak; and `engines`: of each engine by
        name, the bytes of the smallest plan that it holds, or why it takes none.
        """
        return {}

    def sensitivity_cost(self) -> float | None:
        """Full evaluations that measuring the sensitivities is charged as, without measuring it; None if unknown."""
        return None

    def evaluation_seconds(self) -> float:
        """Seconds of a full evaluation, roughly, without running one; nan if unknown."""
        return math.nan

    def row_counts(self) -> Mapping[str, RowCount]:
        """Rows asked for and had, by split: `train`, `validation` and `test`."""
        return {}

    def metric_digests(self) -> Mapping[str, str]:
        """Of the source of each metric of generated answers: a record that has another one has old scores."""
        return {}

    def cards(self) -> Sequence[Mapping[str, Any]]:
        """Which graphics cards a run fits; `qra doctor --model` prints it.

        For each card: its `name` and `bytes`, the `settings` with which a run fits it, as words, the `phase` that then
        takes most and its `peak_bytes`; `settings` is None if nothing fits.
        """
        return ()

    def render_row(self) -> Sequence[tuple[str, bool]] | None:
        """One row of tuning as the model sees it: its text in pieces, each with whether it is learnt."""
        return None

    @property
    def can_tune(self) -> bool:
        """Whether it can tune a plan in full."""
        return getattr(self.tune, "__func__", None) is not Evaluator.tune

    def tune(
        self,
        plan: Plan,
        *,
        seed: int = 0,
        steps: int | None = None,
        folder: Path | None = None,
        save_base: bool = True,
        on_step: Callable[[int, StepFigures], None] | None = None,
        progress: Progress | None = None,
    ) -> TuningRecord:
        """Tune a plan in full and measure it on test rows.

        A tuning that diverges, or whose saved adapter does not load back as it was tuned, has a record that says so.

        Args:
            plan: of `space`, or of its `unquantized`.
            steps: of the optimizer; None: as the settings say.
            folder: of this tuning alone (`qra_search.app.tuning_folder`): for its curve, the checkpoint that it is
                resumed from, its adapter; None: nothing is written.
            save_base: save the quantized base of the adapter as well, and check that both load back.
            on_step: called with each step, counted from 1, and its figures.

        Raises:
            BadInput: the evaluator cannot tune.
            EvaluationFailed: the plan could not be tuned this time (`out of memory: ...`).
        """
        raise BadInput(f"evaluator {type(self).__name__} {CANNOT_TUNE}")

    def tuning_data(self) -> str:
        """Identifies all rows that a full tuning may see, and those of its test; empty if that is not known."""
        return ""

    def serve_tunings(self) -> NoReturn:
        """In all but the first of the processes that a launcher started: share in its tunings, then leave."""
        raise RunFailed(f"evaluator {type(self).__name__} tunes in one process: start it without a launcher")

    def measure_untuned(self) -> TuningRecord | None:
        """Test figures of the model as it was loaded, as a plan of `space.unquantized`; None if it cannot say."""
        return None

    def write_base(self, plan: Plan, folder: Path) -> None:
        """Write the quantized base of a tuning that was saved without it."""
        raise BadInput(f"evaluator {type(self).__name__} {CANNOT_TUNE}")


def check_evaluation(evaluation: Evaluation, space: SearchSpace, plan: Plan) -> Evaluation:
    """The evaluation itself, or EvaluationFailed if it is none, or its bytes cannot be true."""
    if not isinstance(evaluation, Evaluation):
        raise EvaluationFailed(f"the evaluator returned {type(evaluation).__name__}, an Evaluation is needed")
    expected = space.memory_bytes(plan)
    if evaluation.memory_bytes != expected:
        raise EvaluationFailed(
            f"the evaluator counted {evaluation.memory_bytes} bytes, the space counts {expected} for the same plan"
        )
    return evaluation
