"""What a run found, in figures and in a sentence: measured on test data, on validation data, or only predicted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qra_search.allocate.solve import Allocation
from qra_search.report.formatting import change_text, loss_text, pair_text, plan_name
from qra_search.runs.comparison import Change, Comparison, TunedPlan, loss_change
from qra_search.space.memory import format_bytes
from qra_search.space.space import SearchSpace
from qra_search.study.candidates import EvaluatedPlan
from qra_search.study.result import SearchResult

NOTHING = "No plan has been evaluated with success yet."
NOT_TUNED = "Nothing was tuned yet."
CHANCE = "too small to tell from chance"


@dataclass(frozen=True)
class Finding:
    """The best plan against the best uniform plan within a budget.

    Attributes:
        data: that both losses are of.
        baseline: None if no uniform plan was measured; the plan itself if that is uniform.
        change: of the loss against the baseline's; None without another plan, or if one diverged.
    """

    space: SearchSpace
    data: Literal["test", "validation"]
    budget_bytes: int
    chosen: TunedPlan | EvaluatedPlan
    baseline: TunedPlan | EvaluatedPlan | None = None
    change: Change | None = None

    @property
    def is_better(self) -> bool:
        """Whether the loss is lower than the baseline's, be it by chance."""
        return self.change is not None and self.change.is_lower

    @property
    def is_unproven(self) -> bool:
        """Whether nothing says by how much two test losses would differ by chance."""
        return self.data == "test" and self.change is not None and self.change.interval is None


def find_result(
    result: SearchResult, comparison: Comparison | None = None, budget_bytes: int | None = None
) -> Finding | None:
    """What was found, on test data if a plan was tuned; None if nothing that fits was evaluated.

    Args:
        budget_bytes: of what was evaluated; default: the run's largest.
    """
    if comparison is not None:
        return find_tested(comparison)
    evaluated = result.comparison(budget_bytes)
    if evaluated is None or not evaluated.best.evaluations:
        return None
    best, uniform = evaluated.best, evaluated.uniform
    limited = budget_bytes is not None or bool(result.memory_budgets)
    limit = evaluated.budget if limited else max(c.memory_bytes for c in result.candidates)
    change = None if uniform is None or uniform.plan == best.plan else evaluated_change(best, uniform)
    return Finding(result.space, "validation", limit, best, uniform, change)


def find_tested(comparison: Comparison) -> Finding:
    """What was found on test data."""
    budget_bytes, tuned = comparison.budget_bytes, comparison.tuned
    return Finding(comparison.space, "test", budget_bytes, tuned, comparison.baseline, comparison.change)


def evaluated_change(plan: EvaluatedPlan, other: EvaluatedPlan) -> Change | None:
    """The change of one estimated loss against another, within two standard errors of the difference."""
    if not other.loss:
        return None
    share, noise = ((x / abs(other.loss)) for x in (plan.loss - other.loss, math.hypot(plan.loss_std, other.loss_std)))
    return Change(share, (share - 2 * noise, share + 2 * noise) if math.isfinite(noise) else None)


def headline(result: SearchResult, comparison: Comparison | None = None, budget_bytes: int | None = None) -> str:
    """What a run has to say in a sentence: what was found, or, before anything was evaluated, what is predicted.

    Nothing is called lower that may be so by chance; what makes the plan worthless comes before it.
    """
    if comparison is not None:
        return comparison_headline(comparison)
    found = find_result(result, budget_bytes=budget_bytes)
    if found is not None:
        return _sentence(found)
    if result.failures() and not result.candidates:
        return NOTHING
    allocation = result.allocation(budget_bytes) if budget_bytes or result.has_budget_or_candidates else None
    if allocation is None:
        return NOTHING
    return f"{allocation_text(allocation, result.space)} {'It was not evaluated.' if result.candidates else NOT_TUNED}"


def comparison_headline(comparison: Comparison) -> str:
    """A comparison on test data in a sentence; what makes the plan worthless comes before it."""
    return " ".join([*_faults(comparison), _sentence(find_tested(comparison)), *_control(comparison)])


def _faults(comparison: Comparison) -> Iterator[str]:
    tuned, baseline, untuned = comparison.tuned, comparison.baseline, comparison.find_role("untuned")
    if untuned is not None and tuned.loss >= untuned.loss and not (baseline and baseline.loss < untuned.loss):
        which = "The tuned model is" if baseline in (None, tuned) else "Both models are"
        yield f"{which} worse than untuned, whose test loss is {loss_text(untuned.loss)}."
    # A choice is judged by its likelihood, not by what is written.
    is_silent = tuned.samples and not any(sample["after"].strip() for sample in tuned.samples)
    if is_silent and "choice_loss" not in tuned.metrics:
        yield "The tuned model answers nothing to the test rows that are shown."


def _control(comparison: Comparison) -> Iterator[str]:
    """What choosing by layer is worth: the plan beside its own widths and ranks on other linears of the same shape."""
    tuned, shuffled = comparison.tuned, comparison.find_role("shuffled")
    change = None if shuffled is None else loss_change(tuned, shuffled)
    if shuffled is None or change is None:
        return
    text = f"Its widths and ranks shuffled over linears have {pair_text(tuned.loss, shuffled.loss)[1]}"
    if change.interval is None or change.may_be_chance:
        yield f"{text}: {doubt_text(change)}."
    elif change.is_lower:
        yield f"{text}: choosing by layer brings {change_text(change)}."
    else:
        yield f"{text}: choosing by layer does not pay here, {change_text(change)}."


def _sentence(found: Finding) -> str:
    data, within = found.data, f"within {format_bytes(found.budget_bytes)}"
    if found.baseline is None:
        loss = f"{data.capitalize()} loss {loss_text(found.chosen.loss)}"
        return f"{loss} {within}; no uniform plan to compare it with."
    name = f"{plan_name(found.baseline.plan, found.space)}, {format_bytes(found.baseline.memory_bytes)}"
    change = found.change
    if change is not None and (change.may_be_chance or (found.is_unproven and found.is_better)):
        own, other = pair_text(found.chosen.loss, found.baseline.loss)
        return f"{data.capitalize()} loss {own}, and {other} of {name}, {within}: {doubt_text(change)}."
    if not found.is_better:
        doubt = " (it may be chance)" if found.is_unproven else ""
        return f"No plan found {within} beats {name}, whose {data} loss is {loss_text(found.baseline.loss)}{doubt}."
    own, other = pair_text(found.chosen.loss, found.baseline.loss)
    return f"{data.capitalize()} loss {own} instead of {other} ({name}), {within}: {change_text(change)}."


def doubt_text(change: Change) -> str:
    """Why a difference says nothing."""
    if change.interval is None:
        return "one seed and too few rows, so nothing says whether the difference is chance"
    return f"a difference {CHANCE}, {change_text(change)}"


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
