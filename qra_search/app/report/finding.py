"""What a run found, in figures and in sentences, measured or only predicted; and what may be done next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator

from qra_search.allocate.solve import Allocation
from qra_search.app.compare import (
    Comparison,
    TunedPlan,
    compare_losses,
    compare_scores,
    find_best,
    is_as_good,
    list_deployable,
    measure_lead,
)
from qra_search.app.folder import Snapshot
from qra_search.app.report.formatting import (
    format_change,
    format_evaluations,
    format_loss,
    format_metric,
    format_metric_name,
    format_percent,
    format_plan,
)
from qra_search.space.memory import format_bytes
from qra_search.space.space import SearchSpace
from qra_search.study.result import LossChange, SearchResult, UniformComparison

NOTHING_EVALUATED = "No plan has been evaluated with success yet."
CHANCE_TEXT = "too small to tell from chance"
ACCURACY_METRICS = ("accuracy", "exact_match")
"""Metrics that are shares of right answers."""
SHARE_NAMES = (
    *("", "half", "a third", "a quarter", "a fifth", "a sixth"),
    *("a seventh", "an eighth", "a ninth", "a tenth"),
)
"""One of so many parts, from the first."""
NOTED_SIZE_GAP = 0.01
"""A baseline that is smaller by more than this share is said to be."""


Finding = Comparison | UniformComparison
"""A plan beside the best uniform plan within its budget: on test data, or before it is tuned on validation data."""


def find_evaluated_comparison(result: SearchResult) -> UniformComparison | None:
    """What was found on validation data within the largest budget; None if nothing that fits was evaluated."""
    evaluated = result.comparison()
    return None if evaluated is None or not evaluated.chosen.evaluations else evaluated


def summarize_run(result: SearchResult, comparison: Comparison | None = None, *, headline: str = "") -> str:
    """What a run found, or, before anything was evaluated, what is predicted (see `list_findings`), without what the
    headline says already."""
    return " ".join(drop_repeated(list_findings(result, comparison), headline))


def drop_repeated(findings: Iterable[str], headline: str) -> list[str]:
    """The findings that a headline does not contain."""
    return [text for text in findings if text.rstrip(".") not in headline]


def list_findings(result: SearchResult, comparison: Comparison | None = None) -> list[str]:
    """What a run found, a sentence each, the most important first.

    Nothing is called lower that may be so by chance; what makes the plan worthless comes before all else.
    """
    space = result.space
    if comparison is not None:
        sentences = _list_comparison_findings(comparison)
        if not comparison.is_of_another:
            return sentences
        searched = list_findings(result) if result.candidates else []
        return [*searched, "The run's plan is not tuned yet. These figures are for another plan.", *sentences]
    found = find_evaluated_comparison(result)
    if found is not None:
        return [_describe(found, space)]
    allocation = result.allocation()
    if allocation is None or (result.failures() and not result.candidates):
        return [NOTHING_EVALUATED]
    return [describe_allocation(allocation, space), f"{_explain_unmeasured(result).capitalize()}."]


def make_headline(result: SearchResult, comparison: Comparison | None = None) -> str:
    """What a run found, in a line: what to deploy, or what makes the plan worthless."""
    if comparison is not None:
        return make_comparison_headline(comparison)
    found = find_evaluated_comparison(result)
    if found is not None:
        size = format_bytes(found.chosen.memory_bytes)
        return f"Validation loss {format_loss(found.chosen.loss)} in {size}"
    allocation = result.allocation()
    if allocation is None or (result.failures() and not result.candidates):
        return NOTHING_EVALUATED
    best, size = allocation.best_uniform, format_bytes(allocation.memory_bytes)
    if best is None or not best.is_certain:
        return f"A plan of {size}; {_explain_unmeasured(result)}"
    lead = f"{best.gain:.3f} nats closer to 16 bits than the best uniform plan"
    return f"A plan of {size}, predicted to be {lead} before tuning"


def _explain_unmeasured(result: SearchResult) -> str:
    return "it was not evaluated" if result.candidates else "nothing was tuned yet"


def make_comparison_headline(comparison: Comparison) -> str:
    """What makes all that was tuned worthless; or else what to deploy, after what speaks against it."""
    said = [*_list_caveats(comparison), describe_deployed(comparison)]
    return next(_list_faults(comparison), None) or " ".join(said)


def describe_deployed(comparison: Comparison) -> str:
    """Which model to deploy (`Comparison.deployed`): its figure beside those of 16-bit LoRA and of the best within the
    budget, and its share of the memory of the first of these."""
    own, metric = comparison.deployed, comparison.judging_metric
    if own is None:
        return "Nothing that was tuned can be deployed"
    best = find_best(list_deployable(comparison.tunings), metric)
    sixteen = comparison.find_by_role("16-bit")
    others = [t for t in (sixteen, best) if t is not None and t is not own]
    others = others or [t for t in (comparison.baseline, comparison.chosen) if t not in (None, own)][:1]
    size = format_bytes(own.memory_bytes)
    text = f"Deploy {_name_tuned_plan(own, comparison)} ({size}): {_format_metric_or_loss(own, metric)}"
    text += " right" if metric in ACCURACY_METRICS else ""
    for i, other in enumerate(others):
        figure = "diverged"
        if not other.failed:
            figure = f"{_format_metric_or_loss(other, metric)} ({_describe_gap(own, other, comparison)})"
        text += f"{'; ' if i else ', '}{_name_tuned_plan(other, comparison)} {figure}"
        parts = round(other.memory_bytes / own.memory_bytes)
        if i == 0 and parts > 1:
            text += f", {SHARE_NAMES[parts - 1] if parts <= len(SHARE_NAMES) else f'1/{parts}'} of its memory"
    return text + (", named by --tuning" if comparison.is_named else "")


def _describe_gap(own: TunedPlan, other: TunedPlan, comparison: Comparison) -> str:
    """How much worse or better another is than what is deployed."""
    metric = comparison.judging_metric
    lead, interval = measure_lead(own, other, metric)
    if lead == 0:
        return "the same"
    if interval is not None and interval[0] <= 0 <= interval[1]:
        return "within chance"
    amount = f"{abs(lead):.3g}" if metric else format_percent(abs(lead))
    if metric and format_metric(metric, other.metrics[metric]).endswith("%"):
        amount = f"{100 * abs(lead):.1f} points"
    is_close = lead < 0 and is_as_good(own, other, metric, comparison.tolerance)
    return f"{amount} {'worse' if lead > 0 else 'better'}{', within the tolerance' * is_close}"


def _name_tuned_plan(tuned: TunedPlan, comparison: Comparison) -> str:
    if tuned.role == "16-bit":
        return "16-bit LoRA"
    name = format_plan(tuned.plan, comparison.space)
    mixed = {"plan": "the plan", "shuffled": "the plan shuffled"}.get(tuned.role)
    return name if mixed is None or name.startswith("uniform") else mixed


def _format_metric_or_loss(tuned: TunedPlan, metric: str) -> str:
    if not metric:
        return f"test loss {format_loss(tuned.loss)}"
    name = "" if metric in ACCURACY_METRICS else f"{format_metric_name(metric)} "
    return name + format_metric(metric, tuned.metrics[metric])


def summarize_comparison(comparison: Comparison, *, headline: str = "") -> str:
    """A comparison on test data in a few sentences, without what the headline says already; what makes the plan
    worthless comes first."""
    return " ".join(drop_repeated(_list_comparison_findings(comparison), headline))


def _list_comparison_findings(comparison: Comparison) -> list[str]:
    figures = [_describe(comparison, comparison.space), *_describe_score_difference(comparison)]
    faults = [*_list_faults(comparison), *_list_caveats(comparison)]
    return [*faults, *figures, *_describe_shuffled_plan(comparison)]


def _list_faults(comparison: Comparison) -> Iterator[str]:
    baseline, untuned = comparison.baseline, comparison.find_by_role("untuned")
    tuned = comparison.deployed or comparison.chosen
    if untuned is not None and tuned.loss >= untuned.loss and not (baseline and baseline.loss < untuned.loss):
        which = "The tuned model is" if baseline in (None, tuned) else "Both models are"
        yield f"{which} worse than untuned, whose test loss is {format_loss(untuned.loss)}."
    if tuned.samples and not any(sample["after"].strip() for sample in tuned.samples):
        yield "The tuned model answers nothing to the test rows that are shown."


def _list_caveats(comparison: Comparison) -> Iterator[str]:
    tuned = comparison.deployed or comparison.chosen
    for metric, least in [*tuned.records[0].commonest_scores.items()][:1]:
        interval = tuned.compute_metric_interval(metric) if metric in tuned.metrics else None
        if interval is not None and interval[0] <= least:
            score, own = format_metric(metric, least), format_metric(metric, tuned.metrics[metric])
            common = f"The most common answer, given to every row, scores {score}"
            yield f"{common}: the tuned model, at {own}, may be no better."


def _describe_score_difference(comparison: Comparison) -> Iterator[str]:
    """The first metric of the plan and of its baseline, with their difference over the rows that both answered."""
    tuned, baseline, name = comparison.chosen, comparison.baseline, next(iter(comparison.metric_names), "")
    if not name or baseline is None or baseline is tuned:
        return
    difference, interval = compare_scores(tuned, baseline, name)
    own, other = (format_metric(name, t.metrics[name]) for t in (tuned, baseline))
    text = f"{format_metric_name(name).capitalize()} {own} instead of {other}"
    if interval is not None and interval != (0, 0) and other.endswith("%"):
        gain, *ends = (format_percent(share, "+").removesuffix("%") for share in (difference, *interval))
        chance = f", {CHANCE_TEXT}" if interval[0] <= 0 <= interval[1] else ""
        text = f"{text}: {gain} points ({' to '.join(ends)}){chance}"
    yield f"{text}."


def _describe_shuffled_plan(comparison: Comparison) -> Iterator[str]:
    """What choosing by layer is worth: the plan beside its own widths and ranks on other linears of the same shape."""
    tuned, shuffled = comparison.chosen, comparison.find_by_role("shuffled")
    change = None if shuffled is None else compare_losses(tuned, shuffled)
    if shuffled is None or change is None:
        return
    says = (
        f"choosing by layer {'brings' if change.is_lower else 'does not pay here,'} {format_change(change)}"
    )
    if change.interval is None or change.may_be_chance:
        says = explain_inconclusive(change)
    yield f"The plan shuffled over linears has a test loss of {format_loss(shuffled.loss)}; {says}."


def _describe(found: Finding, space: SearchSpace) -> str:
    data, within, change = found.data, f"within {format_bytes(found.budget_bytes)}", found.change
    loss = f"The plan's {data} loss is {format_loss(found.chosen.loss)}"
    if found.baseline is None:
        is_missing = data == "test" and space.uniform_plans(found.budget_bytes)
        text = (
            "was tuned with the same settings (--against best tunes one)"
            if is_missing
            else "fits to compare it with"
        )
        return f"{loss} {within}; no uniform plan {text}."
    less = found.chosen.memory_bytes - found.baseline.memory_bytes
    name = f"{format_plan(found.baseline.plan, space)}, {format_bytes(found.baseline.memory_bytes)}"
    name += f", {format_bytes(less)} smaller" if less > NOTED_SIZE_GAP * found.chosen.memory_bytes else ""
    other = format_loss(found.baseline.loss)
    is_unproven = data == "test" and change is not None and change.interval is None
    if change is not None and (change.may_be_chance or (is_unproven and change.is_lower)):
        return f"{loss}, and the loss of {name} is {other}, {within}: {explain_inconclusive(change)}."
    if change is None or not change.is_lower:
        doubt = " (it may be chance)" if is_unproven else ""
        return f"None of the plans found {within} beats {name}, whose {data} loss is {other}{doubt}."
    return f"{loss} instead of {other} ({name}), {within}: {format_change(change)}."


def explain_inconclusive(change: LossChange) -> str:
    """Why a difference may be chance."""
    if change.interval is None:
        return "one seed and too few rows, so nothing says whether the difference is chance"
    return f"a difference {CHANCE_TEXT}, {format_change(change)}"


def describe_allocation(allocation: Allocation, space: SearchSpace) -> str:
    within, best = f"Within {format_bytes(allocation.budget_bytes)}", allocation.best_uniform
    chosen = f"{within} the sensitivities choose a plan ({format_plan(allocation.plan, space)})"
    if best is None:
        return f"{chosen}; no uniform plan fits."
    name = f"{format_plan(best.plan, space)}, {format_bytes(best.memory_bytes)}"
    if best.plan == allocation.plan:
        return f"{chosen} that is uniform: no other plan is predicted to be better."
    low, high = best.interval
    by = f"predicted {best.gain:.3f} nats closer to 16 bits than {name}, 90% interval {low:+.3f} to {high:+.3f}"
    doubt = "" if best.is_certain else f", {CHANCE_TEXT} before it is measured"
    return f"{chosen}: before tuning it is {by}{doubt}."


def list_next_steps(run: Snapshot, found: Finding | None = None) -> list[tuple[str, str]]:
    """Commands that may follow, each with what it does."""
    path, result = str(run.folder.path), run.result
    quoted = shlex.quote(f"./{path}" if path.startswith("-") else path)  # which is no option
    steps = [("look at the plan", f"qra show {quoted}")]
    if run.config is None:
        return steps  # of a Study in Python: the commands that go on need settings
    if isinstance(found, Comparison):
        steps.append(("export it", f"qra export {quoted}"))
    is_tuned = isinstance(found, Comparison) and not found.is_of_another
    if not is_tuned and ((chosen := result.choose_plan()) is None or any(chosen.ranks)):
        steps.append(("tune it in full and test it", f"qra finetune {quoted}"))
    planned = run.config.search.evaluations
    more = 2 * max(1, math.ceil(planned)) if result.trials else planned
    return [*steps, ("search further", f"qra search {quoted} --evaluations {format_evaluations(more)}")]
