"""Every chart of the toolkit, drawn by matplotlib: functions give its figures, which `to_svg` and `to_png` write."""

from qra_search.report.figures.canvas import to_png, to_svg
from qra_search.report.figures.runs import (
    figures,
    front_figure,
    fronts_figure,
    plan_figure,
    predictions_figure,
    trace_figure,
    traces_figure,
    write_figures,
)

__all__ = [
    "figures",
    "front_figure",
    "fronts_figure",
    "plan_figure",
    "predictions_figure",
    "to_png",
    "to_svg",
    "trace_figure",
    "traces_figure",
    "write_figures",
]
