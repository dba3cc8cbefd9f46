"""What is said of a run before it starts: its space, its rows, and the cost of a search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from qra_search.app.config import RunConfig
from qra_search.app.evaluator import TunableEvaluator, count_rows, render_row
from qra_search.app.report.formatting import (
    describe_engine,
    format_evaluations,
    format_resident_memory,
    format_time,
)
from qra_search.evaluator import Evaluator
from qra_search.schemas import format_level_label
from qra_search.space.budgets import resolve_budgets
from qra_search.space.memory import format_bytes
from qra_search.study.study import Listener

PLAN_PHASES = ("load", "quantize", "sensitivities")
FEW_ROWS = 32
"""Rows below which a loss says little of other rows."""


def format_cost(evaluations: float, charge: float = 0.0, seconds: float = math.nan) -> str:
    """What a search takes, in words."""

    def format_seconds(count: float) -> str:
        return f", about {format_time(count * seconds)}" if math.isfinite(seconds) else ""

    text = f"{format_evaluations(evaluations)} plans tuned briefly{format_seconds(evaluations)}"
    if not charge:
        return text
    more = format_evaluations(charge)
    return f"{text}. Measuring the sensitivities first takes as long as {more} more{format_seconds(charge)}"


def describe_search_cost(evaluator: Evaluator, evaluations: float, *, is_measured: bool) -> str | None:
    """`format_cost` of a search with an evaluator; None if the evaluator cannot estimate it."""
    if not isinstance(evaluator, TunableEvaluator):
        return format_cost(evaluations) if is_measured else None
    charge = 0.0 if is_measured else evaluator.sensitivity_cost()
    return format_cost(evaluations, charge, evaluator.evaluation_seconds())


def describe_tuning_time(evaluator: TunableEvaluator, count: int) -> str:
    """How long so many tunings take, in words; answers are not among it."""
    estimate = evaluator.estimate_search_cost()
    setup, each = estimate.get("setup_seconds", 0.0), estimate.get("tuning_seconds", 0.0)
    text = f"{format_time(count * each)} to tune and test, without writing answers"
    return f"{format_time(setup)} to quantize the plan, then {text}" if setup else text


def describe_rows(evaluator: Evaluator) -> list[str]:
    """Lines about the rows of a run: how many there are, then warnings."""
    counts = count_rows(evaluator)
    if not counts:
        return []
    parts = []
    for name, count in counts.items():
        whole = f"of {count.available} " if count.available > count.had else ""
        asked = f" ({count.asked} asked for)" if count.had < count.asked else ""
        parts.append(f"{count.had} {whole}{name}{asked}")
    lines = [", ".join(parts)]
    if few := {name: count for name, count in counts.items() if count.had < FEW_ROWS}:
        rows = " and ".join(f"{count.had} {name}" for name, count in few.items())
        lines.append(
            f"warning: only {rows} rows. A loss on fewer than {FEW_ROWS} rows says little about other rows"
        )
    if cut := sum(count.cut for count in counts.values()):
        had = sum(count.had for count in counts.values())
        longest = max(count.longest for count in counts.values())
        lines.append(
            f"{cut} of {had} rows are cut to training.max_length, the longest has {longest} tokens: "
            f"--set training.max_length={longest} keeps them whole"
        )
    return lines


def warn_about_rows(evaluator: Evaluator, listener: Listener) -> None:
    """Tell a listener of rows that are cut, or fewer than asked for."""
    lines = describe_rows(evaluator)
    if len(lines) > 1 or any(count.had < count.asked for count in count_rows(evaluator).values()):
        for line in lines:
            listener.say(line if line.startswith("warning") else f"rows: {line}")


def describe_run(evaluator: Evaluator, config: RunConfig, evaluations: float | None = None) -> dict[str, Any]:
    """Facts of a plan or a search that is yet to begin, as plain data; raises BadInput for a budget that no plan fits.

    Of an evaluator that does not estimate its cost, time and peak memory are unknown until the first evaluation.
    """
    space = evaluator.space
    budgets = resolve_budgets(space, config.search.memory)
    count = config.search.evaluations if evaluations is None else evaluations
    estimate = {}
    if isinstance(evaluator, TunableEvaluator):
        estimate = dict(evaluator.estimate_search_cost())
        if estimate.get("sensitivities_seconds"):
            estimate["sensitivity_cost"] = evaluator.sensitivity_cost()
        before = estimate.get("setup_seconds", 0.0) + estimate.get("sensitivities_seconds", 0.0)
        estimate["total_seconds"] = before + estimate["evaluation_seconds"] * count
    linears = [group for group in space.groups if not group.is_embedding]
    return {
        "config": config.model_dump(mode="json"),
        "groups": len(space),
        "linears": sum(len(group.linears) for group in space.groups),
        "weights": space.weights,
        "fixed_bytes": space.fixed_bytes,
        "levels": [b for b in space.bits if any(b in (group.bits or space.bits) for group in linears)],
        "smallest_bytes": space.memory.minimum,
        "largest_bytes": space.memory.maximum,
        "budgets": list(budgets),
        "evaluations": count,
        "rows": {name: asdict(count) for name, count in count_rows(evaluator).items()},
        "estimate": estimate,
        "example": [{"text": text, "learnt": learnt} for text, learnt in render_row(evaluator)],
    }


def list_run_facts(
    facts: Mapping[str, Any], rows: Sequence[str], config: RunConfig, *, is_plan: bool
) -> Iterator[tuple[str, str]]:
    """The space, the rows and the cost of a plan or a search, as names and texts, from `describe_run` and
    `describe_rows`."""
    estimate, parts = facts["estimate"], []
    weights, fixed, budgets = facts["weights"], facts["fixed_bytes"], facts["budgets"]

    def format_size(count: int) -> str:
        return f"{format_bytes(count)}  ({(count - fixed) * 8 / weights:.2f} bits a weight)"

    yield "groups", f"{facts['groups']}, {weights:,} weights in {facts['linears']} linears"
    bits, ranks = ", ".join(map(format_level_label, facts["levels"])), ", ".join(map(str, config.space.ranks))
    yield "choices", f"bits {bits}; ranks {ranks}"
    yield "not searched", format_bytes(fixed)
    yield "smallest plan", format_size(facts["smallest_bytes"])
    yield "largest plan", format_size(facts["largest_bytes"])
    yield "budget", ", ".join(map(format_size, budgets)) or "none: the whole front"
    yield "will run", describe_engine(config)
    for name, least in estimate.get("engines", {}).items():
        if isinstance(least, str):
            yield f"in {name}", f"not this model: {least}"
        else:
            fits = "fits the budget" if least <= max(budgets, default=0) else "is more than the budget"
            size = f"{format_bytes(least)}{f', which {fits},' if budgets else ''}"
            yield f"in {name}", f"at least {size} if planned with --engine {name}"
    if budgets and (resident := format_resident_memory(config, budgets[-1], weights)):
        yield "memory", resident
    yield from (("rows", line) for line in rows)
    if not is_plan:
        cost = format_cost(facts["evaluations"], estimate.get("sensitivity_cost", 0.0))
        yield "evaluations", cost if facts["evaluations"] else "none left: give more with --evaluations"
        yield "strategy", config.search.strategy
    if "total_seconds" in estimate:
        if not is_plan:
            answers = ", not counting the answers that it writes" if config.search.metric == "task" else ""
            parts.append(f"{format_time(estimate['evaluation_seconds'])} an evaluation{answers}")
        if estimate.get("sensitivities_seconds"):
            parts.append(f"{format_time(estimate['sensitivities_seconds'])} for the sensitivities")
        if estimate.get("setup_seconds"):
            parts.append(f"{format_time(estimate['setup_seconds'])} to quantize")
        detail = ", ".join(parts) or "all of it is in the cache"
        yield "time", f"about {format_time(estimate['total_seconds'])} ({detail})"
    else:
        yield "time", "unknown until the first evaluation"
    if "tuning_seconds" in estimate:
        trials = ". Trials of learning rates take at most as long again" * (
            config.training.learning_rate == "auto"
        )
        time = format_time(estimate["tuning_seconds"])
        yield "each tuning", f"about {time}, not counting its answers{trials}"
    for name, peak in estimate.get("phases", {}).items():
        if not is_plan or name in PLAN_PHASES:
            device = f"{format_bytes(peak['device'])} on the GPU, " if peak["device"] else ""
            yield f"peak of {name}", f"{device}{format_bytes(peak['host'])} of this machine's memory"
