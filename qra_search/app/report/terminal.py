"""The result of a run in the terminal, and what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from qra_search.app.compare import Comparison
from qra_search.app.folder import RunFolder
from qra_search.app.report.colors import choose_text_color, make_ramp
from qra_search.app.report.finding import Finding
from qra_search.app.report.formatting import format_evaluations
from qra_search.app.report.layout import HeatMap, arrange_groups
from qra_search.app.report.tables import render_result
from qra_search.errors import one_line
from qra_search.space.space import SearchSpace
from qra_search.study.result import SearchResult

SAMPLE = 220
"""Characters of a prompt or an answer that are shown."""
LABEL_EVERY = 5
"""Every how many columns of the plan's grid one is labelled."""


def print_result(console: Console, result: SearchResult, folder: RunFolder, *, complete: bool = True) -> None:
    """The finding in a sentence, the plans against uniform, and what to do next."""
    console.print()
    comparison = folder.read(result).comparison()
    console.print(render_result(result, comparison))
    if not complete:
        command = escape(f"qra search {shlex.quote(str(folder.path))}")
        console.print(f"Interrupted and saved. Go on with: [bold]{command}[/]", soft_wrap=True)
        return
    print_next_steps(console, folder, result, comparison)


def print_next_steps(
    console: Console, folder: RunFolder, result: SearchResult, found: Finding | None = None
) -> None:
    """Where the report is, and the commands that follow; see `list_next_steps`."""
    console.print(f"Report: [bold]{escape(str(folder.report_file))}[/]", soft_wrap=True)
    steps = list_next_steps(folder.path, result, found)
    width = max(len(what) for what, _ in steps)
    for what, command in steps:
        console.print(f"  {what + ':':{width + 1}}  [bold]{escape(command)}[/]", soft_wrap=True)


def print_samples(console: Console, samples: Sequence[Mapping[str, str]]) -> None:
    """Generated answers from before a tuning and after."""
    if not samples:
        return
    console.print("\nAnswers to test rows, by the quantized model before its tuning and after:")
    for sample in samples:
        console.print(f"\n  {one_line(sample['prompt'], SAMPLE)}", markup=False, style="bold")
        for name in ("wanted", "before", "after"):
            console.print(f"    {name + ':':8} {one_line(sample[name], SAMPLE) or '(nothing)'}", markup=False)


def make_strip(space: SearchSpace, heat: HeatMap, room: int) -> Text:
    """The grid of a plan's bits or ranks; colours are of its place among the choices, numbers say the same without.

    Args:
        room: characters of a line; columns that do not fit are in a grid below.
    """
    if heat.shared_sentence is not None:
        return Text(f"{heat.shared_sentence}\n")
    grid, colors = arrange_groups(space), make_ramp(heat.ramp, heat.steps, dark=True)
    width = max(map(len, heat.labels)) + 1
    margin = max(len(row) for row in grid.rows) + 2
    text, columns = Text(), len(grid.columns)
    fitting = (room - margin) // width
    if fitting < columns:  # each grid begins with a labelled column
        fitting = max(1, fitting // LABEL_EVERY) * LABEL_EVERY
    for start in range(0, columns, fitting):
        shown = range(start, min(start + fitting, columns))
        if columns > 1:
            text.append(_make_heads([grid.columns[i] for i in shown], margin, width) + "\n", style="dim")
        for row, cells in zip(grid.rows, grid.cells, strict=True):
            if all(g is None or not heat.labels[g] for g in cells[start : shown.stop]):
                continue
            text.append(row.ljust(margin))
            for g in cells[start : shown.stop]:
                if g is None or not heat.labels[g]:
                    text.append(" " * width)
                else:
                    color = colors[heat.levels[g]]
                    text.append(heat.labels[g].rjust(width), style=f"{choose_text_color(color)} on {color}")
            text.append("\n")
    return text


def _make_heads(names: Sequence[str], margin: int, width: int) -> str:
    """A line of column names, each ending where its column does: every `LABEL_EVERY`th, and what is no number."""
    line = ""
    for i, name in enumerate(names):
        start = margin + (i + 1) * width - len(name)
        if start > len(line) and (i % LABEL_EVERY == 0 or not name.isdecimal()):
            line = line.ljust(start) + name
    return line


def list_next_steps(
    run: str | Path, result: SearchResult, found: Finding | None = None
) -> list[tuple[str, str]]:
    """Commands that may follow, each with what it does.

    Args:
        found: what the run found; if a uniform plan won on test data, exporting that is a step.
    """
    # As a shell takes it, and as no option.
    folder, quoted = RunFolder(run), shlex.quote(f"./{run}" if str(run).startswith("-") else str(run))
    steps = [("look at the plan", f"qra show {quoted}")]
    if not folder.config_file.is_file():
        return steps  # of a Study in Python: the commands that go on need settings
    if isinstance(found, Comparison):
        if found.change is not None and not found.change.is_lower:
            steps.append(("export the uniform plan", f"qra export {quoted} --tuning uniform"))
        steps.append(("export it", f"qra export {quoted}"))
    is_tuned = isinstance(found, Comparison) and not found.is_of_another
    if not is_tuned and ((chosen := result.choose_plan()) is None or any(chosen.ranks)):
        steps.append(("tune it in full and test it", f"qra finetune {quoted}"))
        steps.append(("with the best learning rate", f"qra finetune {quoted} --rates 5e-4,1e-3,2e-3"))
    planned = folder.config().search.evaluations
    more = 2 * max(1, math.ceil(planned)) if result.trials else planned
    return [*steps, ("search further", f"qra search {quoted} --evaluations {format_evaluations(more)}")]
