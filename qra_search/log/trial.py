"""One trial: what was proposed, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qra_search.evaluation.evaluator import Evaluation, EvaluationFailed
from qra_search.space.space import Plan

MAX_REASON = 4000
MAX_INT = 1 << 63
LARGEST_LOSS = 1e100
"""A loss above has diverged; its square would be no number."""

Status = Literal["running", "done", "failed"]


@dataclass(frozen=True)
class Proposal:
    """What a strategy asks to be evaluated.

    Attributes:
        origin: why it was proposed (`uniform`, `sweep`, `confirm`, ...), for the record.
        predicted_loss, predicted_std: what the strategy expected, if it has a model.
    """

    plan: Plan
    fidelity: float = 1.0
    seed: int = 0
    origin: str = ""
    predicted_loss: float | None = None
    predicted_std: float | None = None

    @property
    def key(self) -> tuple[Plan, float, int]:
        """Equal for proposals that would repeat the same evaluation."""
        return self.plan, self.fidelity, self.seed


@dataclass(frozen=True)
class Trial:
    """One line of the log. `id` counts from 0 in the order of proposing."""

    id: int
    proposal: Proposal
    status: Status = "running"
    evaluation: Evaluation | None = None
    reason: str = ""
    proposed_at: float = 0.0
    finished_at: float | None = None

    @property
    def plan(self) -> Plan:
        return self.proposal.plan

    @property
    def fidelity(self) -> float:
        return self.proposal.fidelity

    @property
    def seed(self) -> int:
        return self.proposal.seed

    @property
    def done(self) -> bool:
        return self.status == "done"

    @property
    def loss(self) -> float:
        """Observed loss; only of a finished trial."""
        if self.evaluation is None:
            raise ValueError(f"trial {self.id} is {self.status} and has no loss")
        return self.evaluation.loss


def plain(evaluation: Evaluation) -> Evaluation:
    """The evaluation in plain numbers, which every log and every process can hold.

    Raises:
        EvaluationFailed: a field is no number, the loss is not finite, or the fidelity is no share of 1.
    """
    try:
        made = Evaluation(
            float(evaluation.loss),
            int(evaluation.memory_bytes),
            {str(name): float(value) for name, value in evaluation.metrics.items()},
            float(evaluation.seconds),
            float(evaluation.fidelity),
            int(evaluation.seed),
        )
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise EvaluationFailed(f"the evaluation holds what is no number ({error})") from None
    if not abs(made.loss) < LARGEST_LOSS:  # nor is it if it is no number
        raise EvaluationFailed(f"loss is {made.loss}")
    if not 0 < made.fidelity <= 1:
        raise EvaluationFailed(f"the evaluation's fidelity is {made.fidelity}, a share up to 1 is needed")
    if not abs(made.seed) < MAX_INT > made.memory_bytes:
        raise EvaluationFailed("the evaluation holds a whole number of more than 64 bits")
    return made


def printable(text: str) -> str:
    """Text that can be stored: valid UTF-8, of bounded length."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + f"... ({len(text)} characters)"
