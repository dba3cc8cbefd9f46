"""The charts of runs: fronts, traces and tunings, each a function from data to a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from qra_search.app.report.data import Point, RunData
from qra_search.app.report.figures.canvas import (
    SHAPES,
    WIDE,
    fit_axis,
    make_figure,
    put_label,
    use_chart_style,
)
from qra_search.app.report.formatting import format_loss
from qra_search.schemas import format_level
from qra_search.space.memory import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIB = 2**20
LABEL_LONG, LEGEND_COLUMNS = 40, 4
LEGEND_ROW, LEGEND_GAP = 20, 22
"""Height of a row of a legend, and of the axis title below it."""
LEAST_SPAN = 0.05
"""Share of the largest size that the memory axis spans at least."""
DASHED, DOTTED = (0, (3.3, 2.7)), (0, (1.3, 2.7))
FRONT_MARKS = {
    # kind: colour, shape, size, opacity
    "other plans": ("dot", "o", 9, 0.75),
    "on the front": ("found", "o", 9, 1.0),
    "uniform plans (b bits, r rank)": ("uniform", "s", 8, 1.0),
    "plan found": ("best", "D", 13, 1.0),
}


def plot_front(run: RunData) -> Figure:
    """Loss against bytes of every plan, the front, the uniform plans and the budgets."""
    result, space = run.result, run.result.space
    budgets, front = result.memory_budgets, {c.plan for c in result.front}
    uniform_kind, found_kind = list(FRONT_MARKS)[2:]
    marks: dict[str, list[Point]] = {kind: [] for kind in FRONT_MARKS}
    labels: list[tuple[str, Point, Point, float]] = []  # text, place, shift, share of the width that it needs
    for p in result.candidates:
        place, choice = (p.memory_bytes / MIB, p.loss), space.uniform_choice(p.plan)
        kind = uniform_kind if choice is not None else "on the front" if p.plan in front else "other plans"
        marks[kind].append(place)
        if choice is not None:
            labels.append((f"{format_level(choice[0])}, r{choice[1]}", place, (8, 10), 0.1))
        if p.plan == run.plan:
            marks[found_kind].append(place)
            labels.insert(0, (f"found, {format_loss(p.loss)}", place, (13, 0), 0.4))
    with use_chart_style() as c:
        figure, axes = _make_chart("Loss against memory of every plan that was evaluated", 1)
        sizes = [b / MIB for b in (*(p.memory_bytes for p in result.candidates), *budgets)]
        fit_axis(axes, "x", "memory, MiB", [*sizes, (1 - LEAST_SPAN) * max(sizes)], log=False)
        _, top = fit_axis(axes, "y", "loss", [p.loss for p in result.candidates])
        for budget in budgets:
            axes.axvline(budget / MIB, color=c["best"], linewidth=1.5, linestyle=DASHED)
            labels.insert(0, (format_bytes(budget), (budget / MIB, top), (7, -8), 0.4))
        steps = [(p.memory_bytes / MIB, p.loss) for p in result.front]
        _plot(axes, steps, drawstyle="steps-post", color=c["found"], linewidth=2.25)
        for kind, places in marks.items():
            color, shape, width, alpha = FRONT_MARKS[kind]
            _plot_markers(axes, places, kind, c["paper"], (c[color], alpha), shape, width)
        taken: list = []
        for text, place, shift, room in labels:
            side: Literal["left", "right"] = (
                "left" if axes.transData.transform(place)[0] > (1 - room) * WIDE[0] else "right"
            )
            put_label(axes, taken, text, place, shift, side=side, moves=(0, 18, 34))
        _add_legend(axes)
    return figure


def plot_traces(run: RunData) -> Figure:
    """Best loss within each budget against evaluations spent, with the trials behind it by origin."""
    traces, limit = run.traces, max(run.result.memory_budgets, default=math.inf)
    uniform = [c.loss for c in run.result.uniform if c.memory_bytes <= limit]
    baselines = [min(uniform)] if uniform and len(traces) == 1 else []
    dots = [
        (spent, t.loss, t.proposal.origin or "proposal")
        for t, spent in zip(run.result.trials, run.spent, strict=True)
        if t.evaluation is not None and t.fidelity >= 1.0 and t.evaluation.memory_bytes <= limit
    ]
    with use_chart_style() as c:
        figure, axes = _make_chart("Best loss within the budget against evaluations spent", len(run.origins))
        fit_axis(axes, "x", "evaluations spent", [0.0, *run.spent], log=False)
        fit_axis(axes, "y", "best loss", [loss for _, loss, _ in dots] + baselines)
        for baseline in baselines:
            axes.axhline(baseline, color=c["uniform"], linewidth=1.5, linestyle=DOTTED)
            put_label(axes, [], "best uniform plan", (axes.get_xlim()[1], baseline), (0, 10), side="left")
        for i, origin in enumerate(run.origins):
            places = [(spent, loss) for spent, loss, o in dots if o == origin]
            _plot_markers(axes, places, origin, c["paper"], (c[f"o-{i % 8}"], 0.85), SHAPES[i % 8])
        for budget, points in traces.items():
            _plot(axes, points, drawstyle="steps-post", color=c["ink"], linewidth=2.5)
            if len(traces) > 1:
                put_label(axes, [], format_bytes(budget), points[-1], (0, 9), side="left")
        _add_legend(axes)
    return figure


def plot_tunings(run: RunData) -> Figure:
    """Loss of each full tuning by step: a line in training, marks where the validation loss was measured."""
    with use_chart_style() as c:
        figure, axes = _make_chart("Loss of the full tunings by step", len(run.curves))
        points = [point for curve in run.curves for point in (*curve.loss, *curve.validation)]
        fit_axis(axes, "x", "step", [0.0, *(x for x, _ in points)], log=False)
        fit_axis(axes, "y", "loss", [y for _, y in points])
        for i, curve in enumerate(run.curves):
            shape, color = SHAPES[i % 8], c[f"o-{i % 8}"]
            _plot(
                axes,
                curve.loss,
                color=color,
                linewidth=2,
                alpha=0.6 if curve.validation else 1.0,
                label=curve.name,
            )
            _plot(
                axes,
                curve.validation,
                linestyle="none",
                marker=shape,
                markersize=8,
                color=color,
                markeredgecolor=c["paper"],
                zorder=3,
            )
        _add_legend(axes)
    return figure


def plot_fronts(runs: Sequence[RunData]) -> Figure:
    """The fronts of several runs, with their budgets."""
    fronts = [[(p.memory_bytes / MIB, p.loss) for p in run.result.front] for run in runs]
    budgets = sorted({b / MIB for run in runs for b in run.result.memory_budgets})
    with use_chart_style() as c:
        figure, axes = _make_chart("The fronts of all runs", len(runs))
        fit_axis(axes, "x", "memory, MiB", [*budgets, *(x for front in fronts for x, _ in front)], log=False)
        fit_axis(axes, "y", "loss", [y for front in fronts for _, y in front])
        for budget in budgets:
            axes.axvline(budget, color=c["soft"], linewidth=1.5, linestyle=DASHED)
        for i, (run, front) in enumerate(zip(runs, fronts, strict=True)):
            _plot(
                axes,
                front,
                drawstyle="steps-post",
                color=c[f"o-{i % 8}"],
                linewidth=2.5,
                label=run.name,
                marker=SHAPES[i % 8],
                markersize=8,
                markeredgecolor=c["paper"],
            )
        _add_legend(axes)
    return figure


def draw_figures(run: RunData) -> dict[str, Figure]:
    """Charts of a run by name: its front, trace and tunings, without those that it has nothing to show for."""
    drawn = {
        "front": plot_front if run.result.candidates else None,
        "trace": plot_traces if run.traces else None,
        "tuning": plot_tunings if run.curves else None,
    }
    return {name: draw(run) for name, draw in drawn.items() if draw is not None}


def _plot(axes: Axes, points: Sequence[Point], **how: Any) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), **how)


def _plot_markers(
    axes: Axes, places: Sequence[Point], name: str, edge: str, color: object, shape: str, size: float = 8
) -> None:
    _plot(
        axes,
        places,
        linestyle="none",
        marker=shape,
        markersize=size,
        color=color,
        markeredgecolor=edge,
        clip_on=False,
        label=name,
        zorder=3,
    )


def _make_chart(title: str, names: int) -> tuple[Figure, Axes]:
    """A figure with room above it for a legend of so many names."""
    return make_figure(title, WIDE, top=34 + LEGEND_ROW * -(-names // LEGEND_COLUMNS))


def _add_legend(axes: Axes) -> None:
    """Say what the marks are above the chart."""
    # `get_legend_handles_labels` would leave out a name of ours that begins with an underscore.
    handles = [line for line in axes.lines if not str(line.get_label()).startswith("_child")]
    if handles:
        names = [str(line.get_label()) for line in handles]
        short = [name if len(name) <= LABEL_LONG else name[: LABEL_LONG - 1] + "…" for name in names]
        at = 1 + LEGEND_GAP / axes.bbox.height
        axes.legend(
            handles,
            short,
            loc="lower left",
            bbox_to_anchor=(0, at),
            ncols=LEGEND_COLUMNS,
            handletextpad=0.4,
            columnspacing=1.4,
            borderpad=0,
            borderaxespad=0,
        )
