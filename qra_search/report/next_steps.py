"""What to do next with a run, as commands; the terminal and the page say the same."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from qra_search.report.finding import Finding
from qra_search.report.formatting import evaluations_text
from qra_search.runs.folder import RunFolder
from qra_search.space.budgets import uniform_text
from qra_search.study.result import SearchResult


def next_steps(
    run: str | Path, result: SearchResult, found: Finding | None = None, place: RunFolder | None = None
) -> list[tuple[str, str]]:
    """Commands that may follow, each with what it does.

    Args:
        run: the run's folder.
        found: what the run found; if a uniform plan won on test data, tuning that is a step.
        place: where the tuned plan is kept; default: the run's folder.
    """
    folder = RunFolder(run)
    place, quoted = place or folder, _quoted(run)
    steps = [("look at the plan", f"qra show {quoted}")]
    if found is not None and found.data == "test" and not found.beats and found.rival not in (None, found.plan):
        plan = uniform_text(found.space, found.rival)
        steps.append(("tune and keep the uniform plan", f"qra finetune {quoted} --plan {plan}"))
    if place.adapter.is_dir():
        steps.append(("export it", f"qra export {_quoted(place.path)}"))
    elif (chosen := result.chosen()) is None or any(chosen.ranks):
        steps.append(("tune it in full and test it", f"qra finetune {quoted}"))
    planned = folder.config().search.evaluations if folder.config_file.is_file() else result.spent
    more = 2 * max(1, math.ceil(planned)) if result.trials else planned
    return [*steps, ("search further", f"qra search {quoted} --evaluations {evaluations_text(more)}")]


def _quoted(path: str | Path) -> str:
    """As a shell takes it, and as no option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
