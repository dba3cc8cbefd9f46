"""The tables of runs as texts, which the terminal prints and the page has as HTML; how results show themselves."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from qra_search.allocate.solve import Allocation
from qra_search.report.data import RunData
from qra_search.report.finding import finding, headline, said
from qra_search.report.formatting import (
    bits_counts,
    duration,
    evaluations_text,
    gain_text,
    loss_text,
    lower_text,
    metric_text,
    plan_name,
    test_loss_text,
    tested_name,
)
from qra_search.report.table import TextTable
from qra_search.runs.comparison import FOUND, TestResult, metrics_of
from qra_search.space.memory import format_bytes
from qra_search.space.space import SearchSpace
from qra_search.study.result import SearchResult

BUDGETS_SHOWN = 12
FAILURES_SHOWN = 50
NOTEBOOK_WIDTH = 110
"""Columns in a notebook."""
HTML = '<pre style="white-space:pre;overflow-x:auto;line-height:1.35;font-family:monospace">{code}</pre>'


def tested_table(tested: Sequence[TestResult], space: SearchSpace) -> TextTable:
    """The comparison on test data, cheapest first, with how much lower the loss of the plan found is.

    Of the task's figures the first; `test.json` has all, which would not fit beside each other.
    """
    names = metrics_of(tested)[:1]
    found = next((t for t in tested if t.role == FOUND), None)
    rows = [
        (
            ("found: " if t is found else "") + tested_name(t, space),
            format_bytes(t.memory_bytes),
            test_loss_text(t),
            "" if found is None or t is found else lower_text(found, t),
            *(metric_text(t, name) if name in t.metrics else "" for name in names),
        )
        for t in tested
    ]
    seeds = max((len(t.losses) for t in tested), default=1)
    caption = "On test data" + (f", mean and standard error of {seeds} seeds" if seeds > 1 else "")
    heads = ("plan", "size", "test loss", "lower by", *(name.replace("_", " ") for name in names))
    notes = []
    if any(row[3] for row in rows):
        notes.append("Lower by: how much lower the loss of the plan found is, as a share of the other's.")
    if any("(" in row[3] for row in rows):
        notes.append(f"In brackets: its 95% interval, from {max(len(t.row_tokens) for t in tested)} test rows.")
    if any("chance" in row[3] for row in rows):
        notes.append("Chance: the interval holds zero.")
    return TextTable(caption, heads, rows, marked=[i for i, t in enumerate(tested) if t is found], notes=notes)


def allocation_table(allocation: Allocation, space: SearchSpace) -> TextTable:
    """The allocated plan, and every uniform plan that fits, by predicted loss."""
    rows = [("planned: " + plan_name(allocation.plan, space), format_bytes(allocation.memory_bytes), "", "", "")]
    for other in sorted(allocation.uniform, key=lambda u: (u.gain, u.memory_bytes)):
        low, high = other.interval
        same = other.plan == allocation.plan
        rows.append((
            plan_name(other.plan, space), format_bytes(other.memory_bytes), f"{other.gain:.3f}",
            "" if same else f"{low:+.3f} to {high:+.3f}", "" if same or other.is_certain else "chance",
        ))  # fmt: skip
    notes = []
    if len(rows) > 1:
        notes.append("Gain: by how many nats of loss the planned one is predicted to end lower, after a short tuning.")
    if any(row[3] for row in rows):
        notes.append("These intervals, meant to hold 90%, held 95% of the differences in seventeen recorded searches.")
    if any(row[4] for row in rows):
        notes.append("Chance: the interval holds zero.")
    heads = ("plan", "size", "gain", "interval", "")
    return TextTable("Predicted by the sensitivities", heads, rows, left=("",), marked=(0,), notes=notes)


def comparison_table(result: SearchResult) -> TextTable:
    """For every budget the best plan, and below it the best uniform plan; a few budgets stand for many.

    Losses are the strategy's estimates, from all evaluations together; `seen` is the mean of the plan's own.
    """
    compared, space = result.comparisons, result.space
    if len(compared) > BUDGETS_SHOWN:
        compared = [compared[round(i * (len(compared) - 1) / (BUDGETS_SHOWN - 1))] for i in range(BUDGETS_SHOWN)]
    rows: list[tuple[str, ...]] = []
    marked = []
    for row in compared:
        best, uniform = row.best, row.uniform
        marked.append(len(rows))
        rows.append((
            format_bytes(row.budget), ("found: " if best.evaluations else "predicted: ") + plan_name(best.plan, space),
            format_bytes(best.memory_bytes), loss_text(best.loss, best.loss_std),
            loss_text(best.observed) if best.evaluations else "not yet",
            "" if uniform is None else gain_text(row.gain, row.doubtful),
        ))  # fmt: skip
        if uniform is None:
            rows.append(("", "no uniform plan fits", "", "", "", ""))
            continue
        loss = loss_text(uniform.loss, uniform.loss_std)
        size = format_bytes(uniform.memory_bytes)
        rows.append(("", plan_name(uniform.plan, space), size, loss, loss_text(uniform.observed), ""))
    heads = ("within" if result.memory_budgets else "up to", "plan", "size", "estimate", "seen", "lower by")
    chance = any("chance" in row[-1] for row in rows)
    notes = ["Chance: below twice the standard error of the difference."] if chance else []
    return TextTable("On validation data", heads, rows, left=("plan",), marked=marked, notes=notes)


def front_table(run: RunData) -> TextTable:
    """The plans of the front, cheapest first."""
    space, front = run.result.space, run.result.front
    rows = [
        (
            plan_name(c.plan, space), bits_counts(c.plan, space), format_bytes(c.memory_bytes),
            loss_text(c.loss, c.loss_std), str(c.evaluations),
        )
        for c in front
    ]  # fmt: skip
    return TextTable(
        "Plans that no other beats in both loss and bytes", ("plan", "groups", "size", "loss", "evaluations"), rows,
        left=("groups",), marked=[i for i, c in enumerate(front) if c.plan == run.plan],
    )  # fmt: skip


def failure_table(run: RunData) -> TextTable:
    """The first failures with their reasons."""
    rows = [
        (str(t.id), plan_name(t.plan, run.result.space), t.reason) for t in run.result.failures()[:FAILURES_SHOWN]
    ]  # fmt: skip
    return TextTable("Failed evaluations", ("trial", "plan", "reason"), rows, left=("plan", "reason"))


def overview_table(runs: Sequence[RunData], named: Callable[[RunData], str] = lambda run: run.name) -> TextTable:
    """The finding of every run, by its name."""
    rows = []
    for run in runs:
        found = run.finding
        rival = found is not None and found.rival is not None
        planned = "" if run.planned is None else f" of {evaluations_text(run.planned)}"
        rows.append((
            f"{named(run)}: {run.result.strategy}, seed {run.result.seed}",
            format_bytes(found.budget) if found else "–",
            f"{loss_text(found.loss)} ({found.data})" if found else "none yet",
            loss_text(found.rival_loss) if found and rival else "–",
            gain_text(found.gain, found.doubtful) if found and rival else "–",
            evaluations_text(run.result.spent) + planned,
            duration(run.seconds),
        ))  # fmt: skip
    heads = ("run", "budget", "loss", "best uniform", "gain", "evaluations", "time")
    return TextTable("The finding of every run", heads, rows)


def result_rich(result: SearchResult, tested: Sequence[TestResult] = ()) -> Group:
    """The finding in a sentence, and for every budget the best plan beside the best uniform one."""
    failed = len(result.failures())
    spent = f"{len(result.trials)} evaluations" + (f", {failed} failed" if failed else "")
    spent += f"; spent {evaluations_text(result.spent)}; strategy {result.strategy}, seed {result.seed}."
    parts: list[Any] = [Text(said(result, tested), style="bold"), Text()]
    if result.comparisons:
        parts += [comparison_table(result), Text()]
    return Group(*parts, Text(spent, style="dim"))


def tested_rich(result: SearchResult, tested: Sequence[TestResult], limit: int) -> Group:
    """A comparison on test data: the finding in a sentence, and every plan that was tuned.

    Args:
        limit: bytes that the comparison keeps to.
    """
    found = headline(finding(result, tested, limit))
    return Group(Text(found, style="bold"), Text(), tested_table(tested, result.space))


def as_html(thing: Any) -> str:
    """What rich prints of an object, as HTML for a notebook."""
    console = Console(file=io.StringIO(), width=NOTEBOOK_WIDTH, record=True, force_jupyter=False)
    console.print(thing)
    return console.export_html(inline_styles=True, code_format=HTML)
