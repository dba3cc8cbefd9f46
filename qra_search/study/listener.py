"""The listener of a run: called with lines of text, steps of long work, and the events of its study."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qra_search.study.study import Callback


class Listener(Callback):
    """Called with what a run does. Every method does nothing by default; a terminal's view is one.

    Args:
        progress: a function for the steps of long work.
    """

    def __init__(self, progress: Callable[[str, int, int], None] | None = None):
        self._progress = progress

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def say(self, text: str) -> None:
        """Show a line of text."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps of a stage, such as `("quantize", 12, 210)`."""
        if self._progress is not None:
            self._progress(stage, done, total)
