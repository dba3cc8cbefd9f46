"""The charts of a run: loss over memory, of the plans that a search evaluated and of those that were tuned in full."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qra_search.app.compare import Comparison
from qra_search.app.report.canvas import WIDE, fit_axis, make_figure, put_label, use_chart_style
from qra_search.app.report.data import RunData
from qra_search.app.report.formatting import format_loss, format_role_label
from qra_search.schemas import format_level
from qra_search.space.memory import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIB = 2**20
LEGEND_COLUMNS, LEGEND_ROW, LEGEND_GAP = 2, 20, 22
"""Columns of a legend, height of its rows, and height of the axis title below it."""
LEAST_SPAN = 0.05
"""Share of the largest size that the memory axis spans at least."""
KINDS = {
    # kind: colour, shape, size, opacity
    "other plans": ("dot", "o", 9, 0.75),
    "on the front": ("found", "o", 9, 1.0),
    "uniform plans (b bits, r rank)": ("uniform", "s", 8, 1.0),
    "plan found": ("best", "D", 13, 1.0),
}
OTHER, FRONT, UNIFORM, FOUND = KINDS


@dataclass(frozen=True)
class Mark:
    """One plan in a chart, with the words beside it."""

    kind: str
    memory_bytes: int
    loss: float
    label: str = ""

    @property
    def place(self) -> tuple[float, float]:
        return self.memory_bytes / MIB, self.loss


def draw_charts(run: RunData) -> dict[str, Figure]:
    """Charts of a run by name, without those that it has nothing to show for."""
    charts = {}
    if run.comparison is not None:
        charts["tuned"] = plot_tuned(run.comparison)
    if run.result.candidates:
        charts["front"] = plot_front(run)
    return charts


def plot_front(run: RunData) -> Figure:
    """Loss against bytes of every plan that was evaluated, the front, the uniform plans and the budgets."""
    space, front = run.result.space, {c.plan for c in run.result.front}
    marks = []
    for p in run.result.candidates:
        choice = space.uniform_choice(p.plan)
        kind = UNIFORM if choice is not None else FRONT if p.plan in front else OTHER
        label = "" if choice is None else f"{format_level(choice[0])}, r{choice[1]}"
        marks.append(Mark(kind, p.memory_bytes, p.loss, label))
        if p.plan == run.plan:
            marks.append(Mark(FOUND, p.memory_bytes, p.loss, f"found, {format_loss(p.loss)}"))
    line = [(p.memory_bytes / MIB, p.loss) for p in run.result.front]
    title = "Loss against memory of every plan that was evaluated"
    return _plot_marks(title, "loss", marks, run.result.memory_budgets, line)


def plot_tuned(comparison: Comparison) -> Figure:
    """Test loss against bytes of every plan that was tuned in full."""
    kinds = {"plan": FOUND, "uniform": UNIFORM}
    marks = [
        Mark(
            kinds.get(tuned.role, OTHER),
            tuned.memory_bytes,
            tuned.loss,
            format_role_label(tuned.role, tuned.plan, comparison.space),
        )
        for tuned in comparison.tunings
        if tuned.role != "untuned" and math.isfinite(tuned.loss)
    ]
    title = "Test loss against memory of every plan that was tuned"
    return _plot_marks(title, "test loss", marks, (comparison.budget_bytes,))


def _plot_marks(
    title: str,
    loss: str,
    marks: Sequence[Mark],
    budgets: Iterable[int],
    line: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Marks by their kinds, their labels as far as there is room, budgets, and a line of steps."""
    budgets = tuple(budgets)
    kinds = [kind for kind in KINDS if any(mark.kind == kind for mark in marks)]
    with use_chart_style() as c:
        figure, axes = make_figure(title, WIDE, top=34 + LEGEND_ROW * math.ceil(len(kinds) / LEGEND_COLUMNS))
        sizes = [count / MIB for count in (*(mark.memory_bytes for mark in marks), *budgets)]
        widest = max(sizes, default=1.0)
        fit_axis(axes, "x", "memory, MiB", [*sizes, (1 - LEAST_SPAN) * widest])
        _, top = fit_axis(axes, "y", loss, [mark.loss for mark in marks])
        if line:
            axes.plot(*zip(*line, strict=True), drawstyle="steps-post", color=c["found"], linewidth=2.25)
        for kind in kinds:
            color, shape, size, opacity = KINDS[kind]
            axes.plot(
                *zip(*(mark.place for mark in marks if mark.kind == kind), strict=True),
                linestyle="none",
                marker=shape,
                markersize=size,
                color=(c[color], opacity),
                markeredgecolor=c["paper"],
                clip_on=False,
                label=kind,
                zorder=3,
            )
        taken: list = []
        for budget in budgets:
            axes.axvline(budget / MIB, color=c["best"], linewidth=1.5, linestyle=(0, (3.3, 2.7)))
            _label(axes, taken, format_bytes(budget), (budget / MIB, top), (7, -8))
        for mark in sorted(marks, key=lambda mark: mark.kind != FOUND):
            shift = (13.0, 0.0) if mark.kind == FOUND else (8.0, 10.0)
            if mark.label:
                _label(axes, taken, mark.label, mark.place, shift)
        if kinds:
            axes.legend(
                loc="lower left",
                bbox_to_anchor=(0, 1 + LEGEND_GAP / axes.bbox.height),
                ncols=LEGEND_COLUMNS,
                handletextpad=0.4,
                columnspacing=1.4,
                borderpad=0,
                borderaxespad=0,
            )
    return figure


def _label(
    axes: Axes, taken: list, text: str, place: tuple[float, float], shift: tuple[float, float]
) -> None:
    """Write a text beside a place, on its left if the right has no room."""
    room = 0.07 * len(text) * 100
    side: Literal["left", "right"] = (
        "left" if axes.transData.transform(place)[0] > WIDE[0] - room else "right"
    )
    put_label(axes, taken, text, place, shift, side=side, moves=(0, 18, 34))
