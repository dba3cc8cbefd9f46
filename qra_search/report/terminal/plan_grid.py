"""A plan in the terminal: one row of coloured numbers a kind, one column a layer."""

from __future__ import annotations

from rich.text import Text

from qra_search.report.colors import ramp, text_on
from qra_search.report.layout import HeatMap, layout
from qra_search.space.space import SearchSpace

LABEL_EVERY = 5


def strip(space: SearchSpace, heat: HeatMap) -> Text:
    """The grid of a plan's bits or ranks; colours are of its place among the choices, numbers say the same without."""
    grid, colors = layout(space), ramp(heat.ramp, heat.steps, dark=True)
    width = max(len(str(c)) for c in (space.bits if heat.ramp == "bits" else space.ranks)) + 1
    margin = max(len(row) for row in grid.rows) + 2
    text = Text()
    if len(grid.columns) > 1:
        heads = "".join(
            (c if i % LABEL_EVERY == 0 and len(c) < width else "").rjust(width) for i, c in enumerate(grid.columns)
        )
        text.append(" " * margin + heads.rstrip() + "\n", style="dim")
    for row, cells in zip(grid.rows, grid.cells, strict=True):
        text.append(row.ljust(margin))
        for g in cells:
            if g is None:
                text.append(" " * width)
            else:
                color = colors[heat.levels[g]]
                text.append(heat.labels[g].rjust(width), style=f"{text_on(color)} on {color}")
        text.append("\n")
    return text
