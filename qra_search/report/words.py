"""How plans, sizes, times and findings are put into words; one wording for the terminal and the report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qra_search.runs.final_test import FOUND, Tested
from qra_search.space.levels import level_words
from qra_search.space.memory import format_bytes

if TYPE_CHECKING:
    from qra_search.space.space import Plan, SearchSpace
    from qra_search.study.result import Candidate, SearchResult


FAILURES = ("diverged", "out of memory")
"""What a failed tuning's reason begins with if there is a word for it."""


def plan_name(plan: Plan, space: SearchSpace) -> str:
    """`uniform 3 bits, rank 8`, or `mixed, 2.91 bits, rank 11.4` with the averages over the groups; and the level of
    the embeddings if it is searched."""
    tables = dict.fromkeys(b for g, b in zip(space.groups, plan.bits, strict=True) if g.uniform is not None)
    rest = f", embeddings {' and '.join(map(level_words, tables))}" if tables else ""
    choice = space.uniform_choice(plan)
    if choice is not None:
        return f"uniform {level_words(choice[0])}, rank {choice[1]}{rest}"
    return f"mixed, {space.mean_bits(plan):.2f} bits, rank {space.mean_rank(plan):.1f}{rest}"


def bits_counts(plan: Plan, space: SearchSpace) -> str:
    """How many groups have each level: `12 at 2 bits, 18 at nf4`."""
    counts = Counter(plan.bits)
    return ", ".join(f"{counts[name]} at {level_words(name)}" for name in space.bits if counts[name])


def loss_text(value: float, std: float = math.nan) -> str:
    """A loss to four figures, with its deviation where one is known."""
    if not math.isfinite(value):
        return "diverged"
    text = f"{value:#.4g}".rstrip(".")
    return text if not math.isfinite(std) else f"{text} ± {std:.2g}"


def test_loss_text(tested: Tested) -> str:
    """The test loss of a tuned plan; or `diverged`, `out of memory` or `failed`."""
    if not tested.failed:
        return loss_text(tested.loss, tested.loss_error)
    what, colon, _ = tested.failed.partition(":")
    return what if colon and what in FAILURES else "failed"


def pair_text(low: float, high: float) -> tuple[str, str]:
    """Two losses with just enough digits (at least two decimals) to be told apart."""
    for digits in range(2, 7):
        if f"{low:.{digits}f}" != f"{high:.{digits}f}":
            return f"{low:.{digits}f}", f"{high:.{digits}f}"
    return f"{low:.2f}", f"{high:.2f}"


def percent(share: float) -> str:
    """A share as a percentage: `16.4 %`."""
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """A time as people read it: `41 s`, `6 min 12 s`, `2 h 05 min`."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def evaluations_text(count: float) -> str:
    """A number of evaluations, whole where it is whole."""
    return f"{count:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Finding:
    """What a search found in figures: the best plan against the strongest uniform plan that fits.

    Attributes:
        space: of both plans.
        data: `test` where the final comparison was made, else `validation`.
        budget: bytes that both keep to.
        rival: None if no uniform plan fits.
        noise: standard error of the difference of the two losses; nan if nothing tells it.
    """

    space: SearchSpace
    data: str
    plan: Plan
    loss: float
    memory_bytes: int
    budget: int
    rival: Plan | None = None
    rival_loss: float = math.nan
    rival_bytes: int = 0
    noise: float = math.nan

    @property
    def beats(self) -> bool:
        """Whether the plan's loss is lower than its rival's."""
        return self.rival is not None and self.loss < self.rival_loss

    @property
    def gain(self) -> float:
        """How much lower the loss is, as a share of the rival's."""
        return 1.0 - self.loss / self.rival_loss

    @property
    def doubtful(self) -> bool:
        """Whether the difference is less than twice its standard error."""
        return self.beats and self.rival_loss - self.loss < 2 * self.noise


def finding(result: SearchResult, tested: Sequence[Tested] = ()) -> Finding | None:
    """What was found, on test data where the final comparison was made; None if nothing fits or ended."""
    tuned = next((t for t in tested if t.role == FOUND), None)
    comparison = result.comparison()
    best: Tested | Candidate
    rival: Tested | Candidate | None
    if tuned is not None:
        data, best, budget = "test", tuned, max([*result.memory_budgets[-1:], *(t.memory_bytes for t in tested)])
        # A plan found that is uniform itself is its own rival: nothing beats uniform then.
        usual = result.space.uniform_choice
        rivals = [t for t in tested if (t.role != FOUND or usual(t.plan)) and math.isfinite(t.loss)]
        rival = min(rivals, key=lambda t: t.loss, default=None)
    elif comparison is not None:
        data, best, rival = "validation", comparison.best, comparison.uniform
        budget = comparison.budget if result.memory_budgets else max(c.memory_bytes for c in result.candidates)
    else:
        return None
    known = result.space, data, best.plan, best.loss, best.memory_bytes, budget
    if rival is None:
        return Finding(*known)
    return Finding(*known, rival.plan, rival.loss, rival.memory_bytes, math.hypot(_error(best), _error(rival)))


def _error(of: Tested | Candidate) -> float:
    return of.loss_error if isinstance(of, Tested) else of.loss_std


def headline(found: Finding | None) -> str:
    """A finding in one sentence."""
    if found is None:
        return "No plan has been evaluated with success yet."
    size = format_bytes(found.budget)
    if found.rival is None:
        return f"{found.data.capitalize()} loss {loss_text(found.loss)} at {size}; no uniform plan to compare it with."
    rival = plan_name(found.rival, found.space)
    if not found.beats:
        return f"No plan found within {size} beats {rival}, whose {found.data} loss is {loss_text(found.rival_loss)}."
    low, high = pair_text(found.loss, found.rival_loss)
    doubt = ", a difference within the noise" if found.doubtful else ""
    return f"{found.data.capitalize()} loss {low} instead of {high} ({rival}) at the same {size}{doubt}."


def model_and_task(identity: dict[str, Any]) -> tuple[str, str]:
    """Names of the model and of the task, from what a log says of its evaluator; empty if it says nothing."""

    def name(key: str) -> str:
        value = identity.get(key)
        if isinstance(value, dict):
            value = value.get("name") or value.get("spec")
        return str(value) if isinstance(value, (str, int)) else ""

    return name("model"), name("task")
