"""Progress where a Python caller runs: in the cell of a notebook, in a terminal, or as lines on stderr."""

from __future__ import annotations

import importlib.util
import sys

from rich.console import Console

from qra_search.report.terminal.live import PlainView, RichView, View, make_view


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return type(get_ipython()).__name__ == "ZMQInteractiveShell"


def progress_view() -> View:
    """The view that suits where this process runs: a cell of a notebook, a terminal, or lines on stderr.

    In a notebook rich draws bars if `ipywidgets` is installed; else lines are printed.
    """
    if not in_notebook():
        return make_view(Console(stderr=True, highlight=False, emoji=False))
    drawn = importlib.util.find_spec("ipywidgets") is not None
    return RichView(Console()) if drawn else PlainView(Console(force_jupyter=False))
