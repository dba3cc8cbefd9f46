"""Results as tables in the terminal."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qra_search.errors import one_line
from qra_search.report import formatting
from qra_search.report.finding import Finding, said
from qra_search.report.shares import metric_text
from qra_search.report.terminal.columns import columns
from qra_search.runs.comparison import FOUND, TestResult, difference, metrics_of, read_test
from qra_search.space.budgets import uniform_text
from qra_search.space.memory import format_bytes
from qra_search.space.space import SearchSpace
from qra_search.study.forecast import Forecast

if TYPE_CHECKING:
    from qra_search.runs.folder import RunFolder
    from qra_search.study.result import SearchResult

RESULT_ROWS = 12
SAMPLE = 220
"""Characters of a prompt or an answer that are shown."""


def print_result(console: Console, result: SearchResult, folder: RunFolder, *, complete: bool = True) -> None:
    """The finding in a sentence, the plans against uniform, and what to do next."""
    console.print(f"\n[bold]{escape(said(result, read_test(folder.test())))}[/]\n")
    if result.comparisons:
        console.print(comparison_table(result))
    failed = len(result.failures())
    counts = f"{len(result.trials)} evaluations" + (f", {failed} failed" if failed else "")
    console.print(f"\n{counts}; spent {formatting.evaluations_text(result.spent)} of the search's evaluations.")
    if not complete:
        command = escape(f"qra search {shlex.quote(str(folder.path))}")
        console.print(f"Interrupted and saved. Go on with: [bold]{command}[/]", soft_wrap=True)
        return
    next_steps(console, folder)


def next_steps(
    console: Console, folder: RunFolder, found: Finding | None = None, *, place: RunFolder | None = None,
    more: Sequence[tuple[str, str]] = (),
) -> None:  # fmt: skip
    """Where the report is, and the commands that follow.

    Args:
        found: what the comparison on test data says, if it was made just now.
        place: where the tuned plan is kept; default: the run's folder.
        more: steps after these, each in words and as a command.
    """
    run, quoted = shlex.quote(str(folder.path)), shlex.quote(str((place or folder).path))
    console.print(f"Report: [bold]{escape(str(folder.report_file))}[/]", soft_wrap=True)
    steps = [("look at the plan", f"qra show {run}")]
    if found is not None and found.rival is not None and not found.beats and found.rival != found.plan:
        steps.append(
            ("tune and keep the uniform plan", f"qra finetune {run} --plan {uniform_text(found.space, found.rival)}")
        )
    if (place or folder).adapter.is_dir():
        steps.append(("export it", f"qra export {quoted}" + ("" if folder.engine() else " --format peft")))
    else:
        steps.append(("tune it in full", f"qra finetune {run}"))
    width = max(len(what) for what, _ in (*steps, *more))
    for what, command in (*steps, *more):
        console.print(f"  {what + ':':{width + 1}}  [bold]{escape(command)}[/]", soft_wrap=True)


def tested_table(tested: Sequence[TestResult], space: SearchSpace) -> Table:
    """The final comparison, cheapest first, the plan found marked, and how much lower its loss is than each other."""
    names = metrics_of(tested)
    best = min((t.loss for t in tested), default=math.nan)
    heads = (name.replace("_", " ") for name in names)
    found = next((t for t in tested if t.role == FOUND), None)
    table = columns("plan", "size", "test loss", "lower by", *heads, left=("plan",))
    for t in tested:
        mark = "found: " if t.role == FOUND else ""
        style = "bold green" if t.loss == best else ("bold" if t.role == FOUND else "")
        table.add_row(
            Text(mark + formatting.plan_name(t.plan, space), style="bold" if t.role == FOUND else ""),
            format_bytes(t.memory_bytes),
            Text(formatting.test_loss_text(t), style=style),
            "" if found is None or t is found else lower_text(found, t),
            *("" if t.failed else metric_text(t, name) for name in names),
        )
    return table


def lower_text(found: TestResult, other: TestResult) -> str:
    """How much lower a loss is as a share of the other, with its interval at 95%; `chance` if that holds zero."""
    if not (math.isfinite(found.loss) and math.isfinite(other.loss) and other.loss):
        return ""
    share, interval = formatting.percent(1 - found.loss / other.loss), difference(found, other)
    if interval is None:
        return f"{share}, no interval"
    low, high = (formatting.signed_percent(-end / other.loss).removesuffix(" %") for end in reversed(interval))
    return f"{share} ({low} to {high}{', chance' if interval[0] <= 0 <= interval[1] else ''})"


def print_samples(console: Console, tested: Sequence[TestResult]) -> None:
    """Generated answers of the plan found, from before its tuning and after."""
    samples = next((t.samples for t in tested if t.role == FOUND), ())
    if not samples:
        return
    console.print("\nAnswers to test rows, by the quantized model before its tuning and after:")
    for sample in samples:
        console.print(f"\n  {one_line(sample['prompt'], SAMPLE)}", markup=False, style="bold")
        for name in ("wanted", "before", "after"):
            console.print(f"    {name + ':':8} {one_line(sample[name], SAMPLE) or '(nothing)'}", markup=False)


def forecast_table(foretold: Forecast, space: SearchSpace) -> Table:
    """The plan that the sensitivities choose, and every uniform plan that fits, by predicted loss."""
    table = columns("plan", "size", "gain", "90% interval", "", left=("plan", ""))
    chosen = Text("planned: " + formatting.plan_name(foretold.plan, space), style="bold")
    table.add_row(chosen, format_bytes(foretold.memory_bytes))
    for other in sorted(foretold.uniform, key=lambda u: (u.gain, u.memory_bytes)):
        low, high = other.interval
        same = other.plan == foretold.plan
        table.add_row(
            formatting.plan_name(other.plan, space), format_bytes(other.memory_bytes), f"{other.gain:.3f}",
            "" if same else f"{low:+.3f} to {high:+.3f}", "" if same or other.certain else "chance",
        )  # fmt: skip
    return table


def comparison_table(result: SearchResult) -> Table:
    """For every budget the best plan, and below it the best uniform plan; a few budgets stand for many.

    Losses are the strategy's estimates, from all evaluations together; `seen` is the mean of the plan's own.
    """
    rows, space = result.comparisons, result.space
    first = "within" if result.memory_budgets else "up to"
    table = columns(first, "plan", "size", "estimate", "seen", "lower by", left=("plan",))
    for fixed in (0, 2, 3, 4, 5):
        table.columns[fixed].no_wrap = True
    if len(rows) > RESULT_ROWS:
        rows = [rows[round(i * (len(rows) - 1) / (RESULT_ROWS - 1))] for i in range(RESULT_ROWS)]
    for row in rows:
        best, uniform = row.best, row.uniform
        table.add_row(
            format_bytes(row.budget),
            Text("found: " + formatting.plan_name(best.plan, space), style="bold"),
            format_bytes(best.memory_bytes),
            Text(formatting.loss_text(best.loss, best.loss_std), style="bold"),
            formatting.loss_text(best.observed),
            formatting.percent(row.gain) if row.gain > 0 else ("none" if uniform is not None else ""),
        )
        if uniform is None:
            table.add_row("", "no uniform plan fits")
            continue
        loss = formatting.loss_text(uniform.loss, uniform.loss_std)
        table.add_row("", formatting.plan_name(uniform.plan, space), format_bytes(uniform.memory_bytes), loss, "", "")
    return table
