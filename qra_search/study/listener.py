"""The listener of a run: called with lines of text, steps of long work, and the events of its study."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qra_search.study.study import Callback


class Listener(Callback):
    """Called with what a run does. Every method does nothing by default; a terminal's view is one."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def say(self, text: str) -> None:
        """Show a line of text."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps of a stage, such as `("quantize", 12, 210)`."""


class ProgressListener(Listener):
    """Passes the steps of long work to a function."""

    def __init__(self, progress: Callable[[str, int, int], None]):
        self._progress = progress

    def progress(self, stage: str, done: int, total: int) -> None:
        self._progress(stage, done, total)
