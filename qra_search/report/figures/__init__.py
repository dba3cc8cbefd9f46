"""Every chart of the toolkit, drawn by matplotlib: functions give its figures, which `to_svg` and `to_png` write."""

from qra_search.report.figures.canvas import to_png, to_svg
from qra_search.report.figures.charts import figures, write_figures

__all__ = ["figures", "to_png", "to_svg", "write_figures"]
