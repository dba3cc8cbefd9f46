"""What to do next with a run, as commands; the terminal and the page say the same."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from qra_search.report.finding import Finding
from qra_search.report.formatting import evaluations_text
from qra_search.runs.folder import RunFolder
from qra_search.study.result import SearchResult


def next_steps(run: str | Path, result: SearchResult, found: Finding | None = None) -> list[tuple[str, str]]:
    """Commands that may follow, each with what it does.

    Args:
        found: what the run found; if a uniform plan won on test data, exporting that is a step.
    """
    folder, quoted = RunFolder(run), _quoted(run)
    is_tested = found is not None and found.data == "test"
    steps = [("look at the plan", f"qra show {quoted}")]
    if found is not None and is_tested:
        if found.change is not None and not found.change.is_lower:
            steps.append(("export the uniform plan", f"qra export {quoted} --tuning uniform"))
        steps.append(("export it", f"qra export {quoted}"))
    elif (chosen := result.chosen()) is None or any(chosen.ranks):
        steps.append(("tune it in full and test it", f"qra finetune {quoted}"))
    planned = folder.config().search.evaluations if folder.config_file.is_file() else result.spent
    more = 2 * max(1, math.ceil(planned)) if result.trials else planned
    return [*steps, ("search further", f"qra search {quoted} --evaluations {evaluations_text(more)}")]


def _quoted(path: str | Path) -> str:
    """As a shell takes it, and as no option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
