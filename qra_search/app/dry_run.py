"""What is known of a run before it starts: its rows, its space, and the cost and possible gain of a search."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from qra_search.allocate.solve import Allocation
from qra_search.app.config import RunConfig
from qra_search.app.report import formatting
from qra_search.app.tunable import CostedEvaluator, TunableEvaluator, count_rows, render_row
from qra_search.errors import convert_to_bad_input, shorten
from qra_search.evaluator import Evaluator
from qra_search.space.budgets import resolve_budgets
from qra_search.study.listener import Listener

FEW_ROWS = 32
"""Rows below which a loss says little of other rows."""
ROW_FIELDS = {"validation": "evaluation.validation_rows", "test": "finetune.test_rows"}
"""Fields that say how many rows of a split are measured."""


def describe_run(evaluator: Evaluator, config: RunConfig, evaluations: float | None = None) -> dict[str, Any]:
    """Facts of a plan or a search that is yet to begin, as plain data; raises BadInput for a budget that no plan fits.

    Of an evaluator that does not estimate its cost, time and peak memory are unknown until the first evaluation.

    Args:
        evaluations: full evaluations that are left to spend, 0 for a plan alone; None: as the config says.
    """
    space = evaluator.space
    with convert_to_bad_input():
        budgets = resolve_budgets(space, list(config.search.memory) or None)
    estimate = dict(evaluator.estimate()) if isinstance(evaluator, TunableEvaluator) else {}
    count = config.search.evaluations if evaluations is None else evaluations
    if "evaluation_seconds" in estimate:
        if estimate.get("sensitivities_seconds") and isinstance(evaluator, CostedEvaluator):
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


def format_cost(evaluations: float, charge: float = 0.0, seconds: float = math.nan) -> str:
    """What a search takes, in words.

    Args:
        evaluations: full evaluations that it may spend.
        charge: of measuring the sensitivities, in full evaluations; 0 if they are measured.
        seconds: of a full evaluation; nan if unknown.
    """

    def format_seconds(count: float) -> str:
        return f", about {formatting.format_time(count * seconds)}" if math.isfinite(seconds) else ""

    text = f"{formatting.format_evaluations(evaluations)} plans tuned briefly{format_seconds(evaluations)}"
    if not charge:
        return text
    more = formatting.format_evaluations(charge)
    return f"{text}. The sensitivities, measured first, take as long as {more} more{format_seconds(charge)}"


def estimate_cost(evaluator: Evaluator, evaluations: float, *, is_measured: bool) -> str | None:
    """`format_cost` of a search with an evaluator; None if the evaluator cannot estimate it.

    Args:
        is_measured: the sensitivities are there, and cost nothing more.
    """
    if not isinstance(evaluator, CostedEvaluator):
        return format_cost(evaluations) if is_measured else None
    charge = 0.0 if is_measured else evaluator.sensitivity_cost()
    return format_cost(evaluations, charge, evaluator.evaluation_seconds())


def describe_gain(allocation: Allocation | None) -> str:
    """What a search may gain over the allocated plan."""
    best = None if allocation is None else allocation.best_uniform
    if best is not None and best.is_certain:
        return (
            "probably little. A search checks the predicted plan by short tunings, in case the sensitivities "
            "are wrong; on SmolLM2-135M it improved that plan little (docs/study.md)"
        )
    return "unknown, because the predicted gain over uniform plans is within its error. A search measures it"


def describe_rows(evaluator: Evaluator) -> list[str]:
    """Lines about the rows of a run: how many there are, then warnings."""
    counts = count_rows(evaluator)
    if not counts:
        return []
    lines = [
        ", ".join(
            f"{count.had} {f'of {count.available} ' * (count.available > count.had)}{name}"
            + (f" ({count.asked} asked for)" if count.had < count.asked else "")
            for name, count in counts.items()
        )
    ]
    if few := {name: count for name, count in counts.items() if count.had < FEW_ROWS}:
        asked = [
            f"raise {ROW_FIELDS[n]}"
            for n, count in few.items()
            if n in ROW_FIELDS and count.asked == count.had
        ]
        advice = asked + ["give more data"] * (len(asked) < len(few))
        rows = " and ".join(f"{count.had} {name}" for name, count in few.items())
        lines.append(
            f"warning: {rows} rows: fewer than {FEW_ROWS} say little of others, {' and '.join(advice)}"
        )
    if conflicting := [count for count in counts.values() if count.conflicting]:
        lines.append(
            f"warning: {sum(count.conflicting for count in conflicting)} rows share a prompt with another "
            f"row but have a different answer, such as {shorten(conflicting[0].conflicting_prompt)}: check "
            "the data"
        )
    if cut := sum(count.cut for count in counts.values()):
        had, longest = (
            sum(count.had for count in counts.values()),
            max(count.longest for count in counts.values()),
        )
        lines.append(
            f"{cut} of {had} rows are cut to training.max_length, the longest has {longest} tokens: "
            f"--set training.max_length={longest} keeps them whole"
        )
    return lines


def report_rows(evaluator: Evaluator, listener: Listener) -> None:
    """Tell a listener of rows that are cut, conflicting, or fewer than asked for."""
    lines = describe_rows(evaluator)
    if len(lines) > 1 or any(count.had < count.asked for count in count_rows(evaluator).values()):
        for line in lines:
            listener.say(line if line.startswith("warning") else f"rows: {line}")
