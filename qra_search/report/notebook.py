"""The live view in a notebook: the same bars and tables as in a terminal, in the output of the cell."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

from rich.console import Console

from qra_search.log.trial import Trial
from qra_search.report.terminal.live import RichView, Stage, View, make_view

WIDTH = 110
REFRESH = 0.25
"""Least seconds between two drawings."""
FORMAT = '<pre style="white-space:pre;overflow-x:auto;line-height:1.35;font-family:monospace">{code}</pre>'


class NotebookView(RichView):
    """Draws into one output of the running cell, which every drawing replaces."""

    def __init__(self, display: Any = None):
        super().__init__(_console())
        self._display, self._handle = display, None
        self._said: list[str] = []
        self._drawn = 0.0

    def __enter__(self) -> NotebookView:
        return self

    def __exit__(self, *exc: object) -> None:
        self.draw()

    def say(self, text: str) -> None:
        self._said.append(text)
        self.draw()

    def stage_moved(self, stage: Stage) -> None:
        self._draw_in_time()

    def trial_finished(self, trial: Trial) -> None:
        self._draw_in_time()

    def html(self) -> str:
        """What is drawn now."""
        console = _console()
        for text in self._said:
            console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
        console.print(self.render())
        return console.export_html(inline_styles=True, code_format=FORMAT)

    def draw(self) -> None:
        """Replace the output by what is to be shown now."""
        self._drawn = time.monotonic()
        page = _Page(self.html())
        if self._handle is None:
            display = self._display or _ipython_display()
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)

    def _draw_in_time(self) -> None:
        if time.monotonic() - self._drawn >= REFRESH:
            self.draw()


class _Page:
    """What IPython shows as HTML."""

    def __init__(self, html: str):
        self._html = html

    def _repr_html_(self) -> str:
        return self._html


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return type(get_ipython()).__name__ == "ZMQInteractiveShell"


def progress_view() -> View:
    """The view that suits where this process runs: a cell of a notebook, a terminal, or lines on stderr."""
    if in_notebook():
        return NotebookView()
    return make_view(Console(stderr=True, highlight=False, emoji=False))


def _console() -> Console:
    """A terminal in memory: rich would print into the cell by itself, once for each drawing."""
    return Console(
        file=io.StringIO(), width=WIDTH, record=True, force_terminal=True, force_jupyter=False,
        color_system="truecolor",
    )  # fmt: skip


def _ipython_display() -> Any:
    from IPython.display import display

    return display
