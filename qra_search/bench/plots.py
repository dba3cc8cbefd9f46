"""Anytime curves of a benchmark: a panel for each setting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qra_search.report.figures.canvas import draw_lines, fit, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST, MOST = 0.003, 10.0
"""Shares beyond are drawn here: the axis is logarithmic."""
PANEL = (540, 340)
NAMES = 150
"""Room for the names of strategies at the right of a panel."""


def anytime_figure(tables: dict[str, Any]) -> Figure:
    """Median share of the possible gain that is left against evaluations, a panel for each setting that has rows."""
    settings = [s for s in tables["settings"] if s["checkpoints"]]
    with style():
        figure, panels = new_figure("Share of the possible gain that is left", PANEL, panels=len(settings), right=NAMES)
        for axes, setting in zip(panels, settings, strict=True):
            series: dict[str, list[tuple[float, float]]] = {}
            for point in setting["checkpoints"]:
                for name, pooled in point["pooled"].items():
                    share = min(max(pooled["median"], LEAST), MOST)
                    series.setdefault(name, []).append((point["evaluations"], share))
            known = [point for curve in series.values() for point in curve]
            fit(axes, "x", "evaluations spent", [at for at, _ in known], log=True)
            fit(axes, "y", f"{setting['kind']}: share of the gain left", [1.0, *(s for _, s in known)], log=True)
            draw_lines(axes, dict(sorted(series.items())))
    return figure
