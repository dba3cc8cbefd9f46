"""Results as tables in the terminal."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qra_search.report import words
from qra_search.report.shares import metric_text
from qra_search.report.terminal.columns import columns
from qra_search.runs.final_test import FOUND, Tested, metrics_of, read_test
from qra_search.space.memory import format_bytes
from qra_search.space.space import SearchSpace

if TYPE_CHECKING:
    from qra_search.runs.folder import RunFolder
    from qra_search.study.result import SearchResult

RESULT_ROWS = 12


def print_result(console: Console, result: SearchResult, folder: RunFolder, *, complete: bool = True) -> None:
    """The finding in a sentence, the plans against uniform, and what to do next."""
    console.print(f"\n[bold]{words.headline(words.finding(result, read_test(folder.test())))}[/]\n")
    if result.comparisons:
        console.print(comparison_table(result))
    failed = len(result.failures())
    counts = f"{len(result.trials)} evaluations" + (f", {failed} failed" if failed else "")
    console.print(f"\n{counts}; spent {words.evaluations_text(result.spent)} of the search's evaluations.")
    if not complete:
        console.print(
            f"Interrupted and saved. Go on with: [bold]qra search --resume --out {folder.path}[/]", soft_wrap=True
        )
        return
    next_steps(console, folder)


def next_steps(console: Console, folder: RunFolder) -> None:
    """Where the report is, and the commands that follow."""
    quoted = shlex.quote(str(folder.path))
    console.print(f"Report: [bold]{folder.report_file}[/]", soft_wrap=True)
    steps = [("look at the plan", f"qra show {quoted}")]
    if not folder.adapter.is_dir():
        steps.append(("tune it in full", f"qra finetune {quoted}"))
    else:
        steps.append(("export it", f"qra export {quoted} --format peft"))
    for what, command in steps:
        console.print(f"  {what}:  [bold]{command}[/]", soft_wrap=True)


def tested_table(tested: Sequence[Tested], space: SearchSpace) -> Table:
    """The final comparison, cheapest first, the plan found marked."""
    names = metrics_of(tested)
    best = min((t.loss for t in tested), default=math.nan)
    heads = (name.replace("_", " ") for name in names)
    table = columns("plan", "size", "test loss", *heads, "time", left=("plan",), gap=3)
    for t in tested:
        mark = "found: " if t.role == FOUND else ""
        style = "bold green" if t.loss == best else ("bold" if t.role == FOUND else "")
        table.add_row(
            Text(mark + words.plan_name(t.plan, space), style="bold" if t.role == FOUND else ""),
            format_bytes(t.memory_bytes),
            Text(words.test_loss_text(t), style=style),
            *("" if t.failed else metric_text(t, name) for name in names),
            words.duration(t.seconds),
        )
    return table


def comparison_table(result: SearchResult) -> Table:
    """For every budget the best plan and the best uniform plan; a few rows stand for many."""
    rows, space = result.comparisons, result.space
    table = columns(
        "budget" if result.memory_budgets else "size", "plan found", "loss", "size", "best uniform", "loss", "gain",
        left=("plan found", "best uniform"), gap=3,
    )  # fmt: skip
    if len(rows) > RESULT_ROWS:
        rows = [rows[round(i * (len(rows) - 1) / (RESULT_ROWS - 1))] for i in range(RESULT_ROWS)]
    for row in rows:
        best, uniform = row.best, row.uniform
        table.add_row(
            format_bytes(row.budget),
            words.plan_name(best.plan, space),
            Text(words.loss_text(best.loss, best.loss_std), style="bold"),
            format_bytes(best.memory_bytes),
            "none fits" if uniform is None else words.plan_name(uniform.plan, space),
            "" if uniform is None else words.loss_text(uniform.loss, uniform.loss_std),
            words.percent(row.gain) if row.gain > 0 else ("none" if uniform is not None else ""),
        )
    return table
