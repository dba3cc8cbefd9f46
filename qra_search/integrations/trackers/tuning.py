"""The steps of a comparison's tunings told to trackers, as a run of its own beside that of the search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qra_search.errors import bad_input
from qra_search.evaluation.evaluator import Figures
from qra_search.files import read_json, write_json
from qra_search.integrations.trackers import make_tracker
from qra_search.study.result import SearchResult

KNOWN_FILE = "trackers.json"


@contextmanager
def tracked(
    specs: Sequence[str], folder: Path, settings: Mapping[str, Any], result: SearchResult, say: Callable[[str], None]
) -> Iterator[Callable[[str], Figures]]:
    """What hears of the steps of each tuning by its name; a figure is `<tuning>/<figure>`, at its step.

    A comparison that is resumed goes on in the same run of a tool. A tool that fails gets nothing more, and `say`
    hears why.

    Args:
        folder: of the tunings, beside the comparison.
        settings: plain values by dotted name.

    Raises:
        BadInput: no such tracker, its tool is not installed, or it cannot write there.
    """
    known = read_json(folder / KNOWN_FILE) or {}
    with bad_input():
        trackers = [make_tracker(spec, folder, say=say) for spec in specs]
        for tracker in trackers:
            known[tracker.name] = tracker.open(settings, known.get(tracker.name))
    if trackers:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / KNOWN_FILE, known)

    def of(tuning: str) -> Figures:
        def tell(step: int, figures: Mapping[str, float]) -> None:
            named = {f"{tuning}/{name}": value for name, value in figures.items() if math.isfinite(value)}
            for tracker in trackers:
                tracker.attempt(lambda t=tracker: t.log(named, step))  # type: ignore[misc]

        return tell

    complete = False
    try:
        yield of
        complete = True
    finally:
        for tracker in trackers:
            tracker.attempt(lambda t=tracker: t.close(result, complete=complete))  # type: ignore[misc]
