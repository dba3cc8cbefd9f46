"""Charts of a page: each drawn at several widths so that text stays readable on any screen, with a legend beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qra_search.report.colors import palette
from qra_search.report.data import RunData
from qra_search.report.figures.canvas import WIDE, Size, shape_path, to_svg
from qra_search.report.html.markup import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES: tuple[tuple[str, Size], ...] = (("s", (380, 320)), ("m", (680, 380)), ("l", WIDE))
HALF: tuple[tuple[str, Size], ...] = (("s", (380, 320)), ("m", (560, 360)))
"""Widths of a chart that shares its row with another."""
KEY_SIZE = 9


def chart(
    key: str,
    draw: Callable[..., Figure],
    of: RunData | Sequence[RunData],
    summary: str,
    *,
    sizes: Sequence[tuple[str, Size]] = SIZES,
    numbers: Mapping[str, Sequence[int]] | None = None,
) -> str:
    """A chart at every size, of which the style sheet shows the one that suits its container.

    Args:
        draw: one of the charts that takes `of`, a size and `legend`.
        numbers: for each group of points, which plans they are; see `to_svg`.
    """
    drawings = ""
    for name, size in sizes:
        text = to_svg(draw(of, size, legend=False), summary=summary, theme="page", key=f"{key}-{name}", hover=numbers)
        drawings += text.replace("<svg ", f'<svg class="at-{name}" ', 1)
    return f'<div class="chart of-{len(sizes)}">{drawings}</div>'


def legend(items: Sequence[tuple[str, str, str]]) -> str:
    """A list of colour, shape and text of every kind of mark."""
    colors = palette()
    entries = "".join(
        f'<li><svg viewBox="-10 -8 20 16" aria-hidden="true"><path d="{shape_path(shape, KEY_SIZE)}" '
        f'style="fill: {colors[color]}"/></svg>{escape(text)}</li>'
        for color, shape, text in items
    )
    return f'<ul class="key">{entries}</ul>'


def prediction_text(run: RunData) -> str:
    """How good the predictions were, in a sentence."""
    from scipy.stats import spearmanr

    predicted = np.array([p for _, p, _ in run.predictions])
    seen = np.array([s for _, _, s in run.predictions])
    error = float(np.mean(np.abs(predicted - seen)))
    text = f"{len(seen)} predictions, off by {error:.3g} on average"
    if len(seen) >= 3 and np.ptp(predicted) > 0 and np.ptp(seen) > 0:
        text += f"; rank correlation {spearmanr(predicted, seen).statistic:.2f}"
    return text + "."
