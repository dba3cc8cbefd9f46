"""Heat maps: the plan found by kind and layer, and any other grid of levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qra_search.report.colors import ramp, text_on
from qra_search.report.data import RunData
from qra_search.report.figures.canvas import new_figure, style
from qra_search.report.formatting import plan_name
from qra_search.report.layout import heat_maps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = 27


def plan_figure(run: RunData, *, dark: bool = False) -> Figure:
    """Bits and rank of the plan found, and the prior if there is one; kinds down, layers across."""
    plan, space, grid, sensitivities = run.plan, run.result.space, run.layout, run.result.sensitivities
    assert plan is not None
    maps = heat_maps(space, plan, sensitivities)
    left, across, high = 28 + 8 * max(map(len, grid.rows)), CELL * len(grid.columns), CELL * len(grid.rows)
    width, height = max(left + across + 18, 520), 40 + (high + 56) * len(maps)
    with style(dark):
        figure, _ = new_figure(f"{run.name}: {plan_name(plan, space)}", (width, height), panels=0)
        figure.text(16 / width, 1 - 24 / height, str(figure.get_label()), fontsize=13, fontweight="bold")
        for i, heat in enumerate(maps):
            title, colors = f"{heat.title} {heat.remark}", ramp(heat.ramp, heat.steps, dark=dark)
            if heat.ramp == "prior":
                more = "lighter" if dark else "darker"
                title = f"Sensitivity by the prior: one group alone at {space.bits[0]} bits; {more} suffers more"
            bottom = height - 68 - i * (high + 56) - high
            axes = figure.add_axes((left / width, bottom / height, across / width, high / height))
            places = [[math.nan if g is None else heat.levels[g] for g in row] for row in grid.cells]
            draw_heat(axes, grid.rows, grid.columns, places, colors)
            figure.text(16 / width, (bottom + high + 10) / height, title, fontsize=13)
            for g, (x, y) in ((g, (x, y)) for y, row in enumerate(grid.cells) for x, g in enumerate(row)):
                if g is not None and heat.ramp != "prior":
                    axes.text(x + 0.5, y + 0.5, heat.labels[g], ha="center", va="center", fontsize=11,
                              color=text_on(colors[heat.levels[g]]))  # fmt: skip
    return figure


def draw_heat(
    axes: Axes, rows: Sequence[str], columns: Sequence[str], levels: Sequence[Sequence[float]], ramp: Sequence[str]
) -> None:
    """A grid of cells, coloured by the place of each level on a ramp; nan is left empty."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    axes.pcolormesh(np.asarray(levels, dtype=float), cmap=ListedColormap(ramp), vmin=0, vmax=len(ramp),
                    edgecolors=matplotlib.rcParams["figure.facecolor"], linewidth=1)  # fmt: skip
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    places = range(0, len(columns), 1 if len(columns) <= 17 else 5)
    axes.set_xticks([i + 0.5 for i in places], [columns[i] for i in places])
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    axes.tick_params(length=0)
