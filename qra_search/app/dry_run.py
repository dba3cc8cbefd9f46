"""What is said of a run before it starts: its rows, and the cost of a search."""

from __future__ import annotations

import math

from qra_search.app.report import formatting
from qra_search.app.tunable import TunableEvaluator, count_rows
from qra_search.evaluator import Evaluator
from qra_search.study.study import Listener

FEW_ROWS = 32
"""Rows below which a loss says little of other rows."""


def format_cost(evaluations: float, charge: float = 0.0, seconds: float = math.nan) -> str:
    """What a search takes, in words."""

    def format_seconds(count: float) -> str:
        return f", about {formatting.format_time(count * seconds)}" if math.isfinite(seconds) else ""

    text = f"{formatting.format_evaluations(evaluations)} plans tuned briefly{format_seconds(evaluations)}"
    if not charge:
        return text
    more = formatting.format_evaluations(charge)
    return f"{text}. The sensitivities, measured first, take as long as {more} more{format_seconds(charge)}"


def estimate_cost(evaluator: Evaluator, evaluations: float, *, is_measured: bool) -> str | None:
    """`format_cost` of a search with an evaluator; None if the evaluator cannot estimate it."""
    if not isinstance(evaluator, TunableEvaluator):
        return format_cost(evaluations) if is_measured else None
    charge = 0.0 if is_measured else evaluator.sensitivity_cost()
    return format_cost(evaluations, charge, evaluator.evaluation_seconds())


def describe_tuning_time(evaluator: TunableEvaluator, count: int) -> str:
    """How long so many tunings take, in words; answers are not among it."""
    estimate = evaluator.estimate_search_cost()
    setup, each = estimate.get("setup_seconds", 0.0), estimate.get("tuning_seconds", 0.0)
    text = f"{formatting.format_time(count * each)} to tune and test, without writing answers"
    return f"{formatting.format_time(setup)} to quantize the plan, then {text}" if setup else text


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
        lines.append(f"warning: {rows} rows: fewer than {FEW_ROWS} say little of others")
    if cut := sum(count.cut for count in counts.values()):
        had = sum(count.had for count in counts.values())
        longest = max(count.longest for count in counts.values())
        lines.append(
            f"{cut} of {had} rows are cut to training.max_length, the longest has {longest} tokens: "
            f"--set training.max_length={longest} keeps them whole"
        )
    return lines


def report_rows(evaluator: Evaluator, listener: Listener) -> None:
    """Tell a listener of rows that are cut, or fewer than asked for."""
    lines = describe_rows(evaluator)
    if len(lines) > 1 or any(count.had < count.asked for count in count_rows(evaluator).values()):
        for line in lines:
            listener.say(line if line.startswith("warning") else f"rows: {line}")
