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
from qra_search.report.reprs import comparison_table
from qra_search.runs.final_test import FOUND, Tested, read_test
from qra_search.space.memory import format_bytes
from qra_search.space.space import SearchSpace

if TYPE_CHECKING:
    from qra_search.runs.folder import RunFolder
    from qra_search.study.result import SearchResult


def print_result(console: Console, result: SearchResult, folder: RunFolder, *, complete: bool = True) -> None:
    """The finding in a sentence, the plans against uniform, and what to do next."""
    console.print(f"\n[bold]{words.headline(words.finding(result, read_test(folder.test())))}[/]\n")
    rows = words.comparison_rows(result)
    if rows:
        console.print(comparison_table(rows, result.space, named=bool(result.memory_budgets)))
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
    names = [n for n in (tested[0].metrics if tested else {}) if all(n in t.metrics for t in tested)]
    best = min((t.loss for t in tested), default=math.nan)
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("plan")
    table.add_column("size", justify="right")
    table.add_column("test loss", justify="right")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("time", justify="right")
    for t in tested:
        mark = "found: " if t.role == FOUND else ""
        style = "bold green" if t.loss == best else ("bold" if t.role == FOUND else "")
        table.add_row(
            Text(mark + words.plan_name(t.plan, space), style="bold" if t.role == FOUND else ""),
            format_bytes(t.memory_bytes),
            Text(words.loss_text(t.loss, t.loss_error), style=style),
            *(f"{t.metrics[name]:.4g}" for name in names),
            words.duration(t.seconds),
        )
    return table
