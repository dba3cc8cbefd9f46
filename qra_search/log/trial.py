"""One trial: what was proposed, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qra_search.evaluation.evaluator import Evaluation
from qra_search.space.space import Plan

MAX_REASON = 4000

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
    def cost(self) -> float:
        """What it is charged, in full evaluations."""
        return self.proposal.fidelity * self.plan.length

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


def to_printable(text: str) -> str:
    """Text that can be stored: valid UTF-8, of bounded length."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + f"... ({len(text)} characters)"
