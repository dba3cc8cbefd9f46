"""What a run found, in figures and in a sentence: measured on test data, on validation data, or only foretold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from qra_search.allocate.solve import Allocation
from qra_search.report.formatting import loss_text, pair_text, percent, plan_name, signed_percent
from qra_search.runs.comparison import FOUND, UNIFORM, UNTUNED, TestResult, difference
from qra_search.space.memory import format_bytes
from qra_search.space.space import Plan, SearchSpace
from qra_search.study.candidates import lower_by
from qra_search.study.result import SearchResult

NOTHING = "No plan has been evaluated with success yet."
NOT_TUNED = "Nothing was tuned yet."
CHANCE = "too small to tell from chance"


@dataclass(frozen=True)
class Finding:
    """The best plan against the strongest uniform plan that fits, in figures.

    Attributes:
        space: of both plans.
        data: `test` if the final comparison was made, else `validation`.
        budget: bytes that both keep to.
        rival: None if no uniform plan fits.
        noise: standard error of the difference of the two losses; nan if nothing tells it.
        interval: of the loss less the rival's, at 95%, from the test rows that both were measured on; None if unknown.
        untuned_loss: test loss of the model before tuning; nan if unknown.
        silent: whether the tuned plan's sample answers are all empty.
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
    interval: tuple[float, float] | None = None
    untuned_loss: float = math.nan
    silent: bool = False

    @property
    def beats(self) -> bool:
        """Whether the plan's loss is lower than its rival's."""
        return self.rival is not None and self.loss < self.rival_loss

    @property
    def gain(self) -> float:
        """How much lower the loss is, as a share of the rival's; nan if that is zero."""
        return lower_by(self.loss, self.rival_loss)

    @property
    def gains(self) -> tuple[float, float] | None:
        """The interval of `gain` at 95%."""
        if self.interval is None or not self.rival_loss:
            return None
        low, high = self.interval
        return -high / abs(self.rival_loss), -low / abs(self.rival_loss)

    @property
    def doubtful(self) -> bool:
        """Whether the difference may be chance: its interval holds zero, or it is below twice its standard error."""
        if self.rival is None or self.plan == self.rival or not math.isfinite(self.loss):
            return False
        if self.interval is not None:
            return self.interval[0] <= 0.0 <= self.interval[1]
        return abs(self.rival_loss - self.loss) < 2 * self.noise

    @property
    def unmeasured(self) -> bool:
        """Whether nothing says by how much two test losses would differ by chance."""
        both = self.rival is not None and self.rival != self.plan
        return self.data == "test" and both and self.interval is None and not math.isfinite(self.noise)

    @property
    def unproven(self) -> bool:
        """Whether a test loss is lower, and nothing says by how much two would differ by chance."""
        return self.beats and self.unmeasured


def finding(result: SearchResult, tested: Sequence[TestResult] = (), budget: int | None = None) -> Finding | None:
    """What was found, on test data if the final comparison was made; None if nothing that fits was evaluated.

    Args:
        budget: bytes that the comparison on test data keeps to; default: the run's largest.
    """
    tuned = next((t for t in tested if t.role == FOUND), None)
    if tuned is not None:
        sizes = [t.memory_bytes for t in tested if t.role in (FOUND, UNIFORM)]
        limit = budget or max([*result.memory_budgets[-1:], *sizes])
        return _on_test(result.space, tuned, tested, limit)
    comparison = result.comparison(budget)
    if comparison is None or not comparison.best.evaluations:
        return None
    best, rival = comparison.best, comparison.uniform
    limited = budget is not None or bool(result.memory_budgets)
    limit = comparison.budget if limited else max(c.memory_bytes for c in result.candidates)
    known = result.space, "validation", best.plan, best.loss, best.memory_bytes, limit
    if rival is None:
        return Finding(*known)
    return Finding(*known, rival.plan, rival.loss, rival.memory_bytes, comparison.noise)


def _on_test(space: SearchSpace, tuned: TestResult, tested: Sequence[TestResult], limit: int) -> Finding:
    known = space, "test", tuned.plan, tuned.loss, tuned.memory_bytes, limit
    found = partial(
        Finding,
        *known,
        untuned_loss=next((t.loss for t in tested if t.role == UNTUNED and not t.failed), math.nan),
        silent=bool(tuned.samples)
        and "choice_loss" not in tuned.metrics  # a choice is judged by its likelihood, not by what is written
        and not any(sample["after"].strip() for sample in tuned.samples),
    )
    # A plan found that is uniform itself is its own rival: nothing beats uniform then.
    rivals = [
        t
        for t in tested
        if (t.role == UNIFORM or (t is tuned and space.uniform_choice(t.plan))) and math.isfinite(t.loss)
    ]
    # A mean over fewer seeds, of a comparison made before, stands beside what was tuned alike, not in its place.
    alike = [t for t in rivals if len(t.losses) >= len(tuned.losses)]
    rival = min(alike or rivals, key=lambda t: t.loss, default=None)
    if rival is None:
        return found()
    noise = math.hypot(tuned.loss_error, rival.loss_error)
    interval = None if rival is tuned else difference(tuned, rival)
    return found(rival.plan, rival.loss, rival.memory_bytes, noise, interval)


def headline(found: Finding | None) -> str:
    """A finding in one sentence, nothing called lower that may be so by chance; before it, what makes it worthless."""
    return NOTHING if found is None else "".join(f"{fault} " for fault in _faults(found)) + _sentence(found)


def _faults(found: Finding) -> Iterator[str]:
    both = found.rival is not None and found.rival != found.plan
    if found.loss >= found.untuned_loss and not found.rival_loss < found.untuned_loss:
        which = "Both models are" if both else "The tuned model is"
        yield f"{which} worse than untuned, whose test loss is {loss_text(found.untuned_loss)}."
    if found.silent:
        yield "The tuned model answers nothing to the test rows that are shown."


def _sentence(found: Finding) -> str:
    data, within = found.data, f"within {format_bytes(found.budget)}"
    if found.rival is None:
        loss = f"{data.capitalize()} loss {loss_text(found.loss)}"
        return f"{loss} {within}; no uniform plan to compare it with."
    rival = f"{plan_name(found.rival, found.space)}, {format_bytes(found.rival_bytes)}"
    if found.doubtful or found.unproven:
        own, other = pair_text(found.loss, found.rival_loss)
        return f"{data.capitalize()} loss {own}, and {other} of {rival}, {within}: {doubt_text(found)}."
    if not found.beats:
        which = f"whose {data} loss is {loss_text(found.rival_loss)}"
        doubt = " (it may be chance)" if found.unmeasured else ""
        return f"No plan found {within} beats {rival}, {which}{doubt}."
    low, high = pair_text(found.loss, found.rival_loss)
    return f"{data.capitalize()} loss {low} instead of {high} ({rival}), {within}: {gain_text(found)}."


def gain_text(found: Finding) -> str:
    """How much lower the loss is, as a share of the rival's, with the interval if it is known."""
    text = f"{percent(found.gain)} lower"
    if found.gains is None:
        return text
    low, high = (signed_percent(share).removeprefix("+") for share in found.gains)
    return f"{text}, 95% interval {low} to {high}"


def doubt_text(found: Finding) -> str:
    """Why a difference says nothing."""
    if found.unproven:
        return "one seed and too few rows, so nothing says whether the difference is chance"
    if found.gains is None:
        return f"a difference {CHANCE}"
    low, high = map(signed_percent, found.gains)
    return f"a difference {CHANCE}, 95% interval {low} to {high}"


def said(result: SearchResult, tested: Sequence[TestResult] = (), budget: int | None = None) -> str:
    """What a run has to say in a sentence: what was found, or, before anything was evaluated, what is foretold."""
    found = finding(result, tested, budget)
    if found is not None or (result.failures() and not result.candidates):
        return headline(found)
    allocation = result.allocation(budget) if budget or result.plans_are_wanted else None
    if allocation is None:
        return NOTHING
    return f"{allocation_text(allocation, result.space)} {'It was not evaluated.' if result.candidates else NOT_TUNED}"


def allocation_text(allocation: Allocation, space: SearchSpace) -> str:
    """An allocation in one sentence."""
    within, best = f"Within {format_bytes(allocation.budget_bytes)}", allocation.best_uniform
    chosen = f"{within} the sensitivities choose a plan ({plan_name(allocation.plan, space)})"
    if best is None:
        return f"{chosen}; no uniform plan fits."
    name = f"{plan_name(best.plan, space)}, {format_bytes(best.memory_bytes)}"
    if best.plan == allocation.plan:
        return f"{chosen} that is uniform: no other plan is predicted to be better."
    low, high = best.interval
    by = f"predicted {best.gain:.3f} nats lower than that of {name}, 90% interval {low:+.3f} to {high:+.3f}"
    doubt = "" if best.is_certain else f", {CHANCE} before it is measured"
    return f"{chosen}: its loss is {by}{doubt}."
