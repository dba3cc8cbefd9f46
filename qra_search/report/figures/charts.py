"""The charts of runs: fronts, traces and tunings, each a function from data to a figure; and all as files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qra_search.report.data import Point, RunData
from qra_search.report.figures.canvas import POINTS, SHAPES, WIDE, fit, new_figure, put_label, style, to_png, to_svg
from qra_search.report.formatting import loss_text
from qra_search.space.levels import level_words
from qra_search.space.memory import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIB = 2**20
LABEL_LONG = 40
LEAST_SPAN = 0.05
"""Share of the largest size that the memory axis spans at least."""
DASHED, DOTTED = (0, (3.3, 2.7)), (0, (1.3, 2.7))
FRONT_MARKS = {
    # kind: colour, shape, size, opacity, what it is
    "plan": ("dot", "o", 9, 0.75, "other plans"),
    "on-front": ("found", "o", 9, 1.0, "on the front"),
    "uniform": ("uniform", "s", 8, 1.0, "uniform plans (b bits, r rank)"),
    "beyond": ("uniform", "^", 9, 1.0, "beyond the chart"),
    "found": ("best", "D", 13, 1.0, "plan found"),
}


def front_groups(run: RunData) -> dict[str, list[int]]:
    """Which of `run.shown` each kind of mark stands for; the plan found has a mark of its own kind as well."""
    front = {c.plan.key for c in run.result.front}
    top = max(_front_losses(run), default=0.0)
    groups: dict[str, list[int]] = {kind: [] for kind in FRONT_MARKS}
    for i, c in enumerate(run.shown):
        usual = "uniform" if run.result.space.uniform_choice(c.plan) else "on-front" if c.plan.key in front else "plan"
        groups["beyond" if c.loss > top else usual].append(i)
        if c.plan == run.plan:
            groups["found"].append(i)
    return {kind: indices for kind, indices in groups.items() if indices}


def front_figure(run: RunData) -> Figure:
    """Loss against bytes of every plan, the front, the uniform plans and the budgets."""
    losses, groups, budgets = _front_losses(run), front_groups(run), run.result.memory_budgets
    sizes = [*(c.memory_bytes for c in run.shown if c.loss <= max(losses)), *budgets]
    with style() as c:
        figure, (axes,) = new_figure("Loss against memory of every plan that was evaluated", WIDE)
        x_ends = fit(axes, "x", "memory, MiB", [b / MIB for b in spread_out(sizes)], log=False)
        y_ends = fit(axes, "y", "loss", losses)
        places = [(_clamp(p.memory_bytes / MIB, x_ends), _clamp(p.loss, y_ends)) for p in run.shown]
        for budget in budgets:
            axes.axvline(budget / MIB, color=c["best"], linewidth=1.5, linestyle=DASHED)
        front = [(_clamp(p.memory_bytes / MIB, x_ends), _clamp(p.loss, y_ends)) for p in run.result.front]
        _plot(axes, front, drawstyle="steps-post", color=c["found"], linewidth=2.25)
        for kind, indices in groups.items():
            color, shape, width, alpha, name = FRONT_MARKS[kind]
            _marks(axes, [places[i] for i in indices], name, c["paper"], (c[color], alpha), shape, width,
                   gid=POINTS + kind)  # fmt: skip
        taken: list = []

        def label(text: str, at: Point, shift: Point, room: float, moves: Sequence[float] = (0,), **more: str) -> None:
            left = axes.transData.transform(at)[0] > (1 - room) * WIDE[0]
            put_label(axes, taken, text, at, shift, side="left" if left else "right", moves=moves, **more)

        for i in groups.get("found", ()):
            label(f"found, {loss_text(run.shown[i].loss)}", places[i], (13, 0), 0.4, fontweight="bold")
        for budget in budgets:
            label(format_bytes(budget), (budget / MIB, y_ends[1]), (7, -8), 0.4, (0, 16, 32))
        for i, p in enumerate(run.shown):
            choice = run.result.space.uniform_choice(p.plan)
            if choice is None:
                continue
            name = f"{level_words(choice[0])}, r{choice[1]}"
            if i in groups.get("beyond", ()):
                name += f" is beyond: {p.loss:.3g} at {format_bytes(p.memory_bytes)}"
                label(name, places[i], (8, -16), 0.6, (0, 16, 32))
            else:
                label(name, places[i], (8, 10), 0.1, (0, 18))
        _finish(axes)
    return figure


def trace_figure(run: RunData) -> Figure:
    """Best loss within each budget against evaluations spent, with the trials behind it by origin."""
    traces = [t for t in run.traces if t.points]
    limit = max((t.budget for t in traces), default=0)
    uniform = [c.loss for c in run.result.uniform if c.memory_bytes <= limit]
    rivals = [min(uniform)] if uniform and len(traces) == 1 else []
    dots = [
        (spent, t.loss, t.proposal.origin or "proposal")
        for t, spent in zip(run.result.trials, run.spent, strict=True)
        if t.evaluation is not None and t.fidelity >= 1.0 and t.evaluation.memory_bytes <= limit
    ]
    with style() as c:
        figure, (axes,) = new_figure("Best loss within the budget against evaluations spent", WIDE)
        fit(axes, "x", "evaluations spent", [0.0, *run.spent], log=False)
        levels = clipped([loss for _, loss, _ in dots], [t.points[-1][1] for t in traces] + rivals)
        ends = fit(axes, "y", "best loss", levels)
        for rival in rivals:
            axes.axhline(rival, color=c["uniform"], linewidth=1.5, linestyle=DOTTED)
            put_label(axes, [], "best uniform plan", (axes.get_xlim()[1], rival), (0, 10), side="left")
        for i, origin in enumerate(run.origins):
            places = [(spent, loss) for spent, loss, o in dots if o == origin and ends[0] <= loss <= ends[1]]
            _marks(axes, places, origin, c["paper"], (c[f"o-{i % 8}"], 0.85), SHAPES[i % 8])
        for trace in traces:
            points = [(a, _clamp(b, ends)) for a, b in trace.points]
            _plot(axes, points, drawstyle="steps-post", color=c["ink"], linewidth=2.5)
            if len(traces) > 1:
                put_label(axes, [], format_bytes(trace.budget), points[-1], (0, 9), side="left")
        _finish(axes)
    return figure


def tuning_figure(run: RunData) -> Figure:
    """Loss of each full tuning by step: a line in training, marks where the validation loss was measured."""
    with style() as c:
        figure, (axes,) = new_figure("Loss of the full tunings by step", WIDE)
        points = [point for curve in run.curves for point in (*curve.loss, *curve.validation)]
        fit(axes, "x", "step", [0.0, *(x for x, _ in points)], log=False)
        ends = fit(axes, "y", "loss", clipped([y for _, y in points], [curve.loss[-1][1] for curve in run.curves]))
        for i, curve in enumerate(run.curves):
            line = [(x, _clamp(y, ends)) for x, y in curve.loss]
            _plot(axes, line, color=c[f"o-{i % 8}"], linewidth=2, label=curve.name)
            measured = [(x, _clamp(y, ends)) for x, y in curve.validation]
            _plot(axes, measured, linestyle="none", marker=SHAPES[i % 8], markersize=7, color=c[f"o-{i % 8}"],
                  markeredgecolor=c["paper"])  # fmt: skip
        _finish(axes)
    return figure


def fronts_figure(runs: Sequence[RunData]) -> Figure:
    """The fronts of several runs, with their budgets."""
    fronts = [[(p.memory_bytes / MIB, p.loss) for p in run.result.front] for run in runs]
    budgets = sorted({b / MIB for run in runs for b in run.result.memory_budgets})
    with style() as c:
        figure, (axes,) = new_figure("The fronts of all runs", WIDE)
        fit(axes, "x", "memory, MiB", [*budgets, *(x for front in fronts for x, _ in front)], log=False)
        fit(axes, "y", "loss", [y for front in fronts for _, y in front])
        for budget in budgets:
            axes.axvline(budget, color=c["soft"], linewidth=1.5, linestyle=DASHED)
        for i, (run, front) in enumerate(zip(runs, fronts, strict=True)):
            _plot(axes, front, drawstyle="steps-post", color=c[f"o-{i % 8}"], linewidth=2.5, label=run.name,
                  marker=SHAPES[i % 8], markersize=8, markeredgecolor=c["paper"])  # fmt: skip
        _finish(axes)
    return figure


def figures(runs: Sequence[RunData]) -> dict[str, Figure]:
    """Charts by name: of one run its front, trace and tunings; of several their fronts together.

    What a run has nothing to show for is left out.
    """
    if len(runs) > 1:
        return {"fronts": fronts_figure(runs)}
    (run,) = runs
    drawn = {
        "front": front_figure if run.result.candidates else None,
        "trace": trace_figure if any(t.points for t in run.traces) else None,
        "tuning": tuning_figure if run.curves else None,
    }
    return {name: draw(run) for name, draw in drawn.items() if draw is not None}


def write_figures(runs: Sequence[RunData], folder: Path) -> list[Path]:
    """Write every figure as SVG and as PNG; returns the files.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures(runs).items():
        for suffix, content in (("svg", to_svg(figure, theme="screen").encode()), ("png", to_png(figure))):
            written.append(folder / f"{name}.{suffix}")
            written[-1].write_bytes(content)
    return written


def clipped(values: Iterable[float], needed: Iterable[float] = ()) -> list[float]:
    """The values that a chart should make room for: without the top tenth if that takes most of the room.

    `needed` are kept in any case.
    """
    ordered = sorted(v for v in values if math.isfinite(v))
    needed = [v for v in needed if math.isfinite(v)]
    if len(ordered) < 10 or ordered[0] <= 0:
        return ordered + needed
    low, high = ordered[0], ordered[math.ceil(0.9 * len(ordered)) - 1]
    top = max([high * (high / low) ** 0.2, *needed])
    if math.log(ordered[-1] / low) < 2 * math.log(top / low):
        return ordered + needed
    return [v for v in ordered if v <= top] + needed


def spread_out(sizes: Sequence[float]) -> list[float]:
    """Sizes, with others around them if they lie so close that single bytes would look like much."""
    low, high = min(sizes), max(sizes)
    more = (LEAST_SPAN * high - (high - low)) / 2
    return [*sizes, low - more, high + more] if more > 0 else list(sizes)


def _front_losses(run: RunData) -> list[float]:
    """The losses that the front's chart makes room for."""
    found = run.finding
    known = [found.loss, found.rival_loss] if found is not None and found.data == "validation" else []
    return clipped((c.loss for c in run.shown), known)


def _plot(axes: Axes, points: Sequence[Point], **how: Any) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), **how)


def _marks(
    axes: Axes, places: Sequence[Point], name: str, edge: str, color: object, shape: str, size: float = 8,
    gid: str | None = None,
) -> None:  # fmt: skip
    _plot(axes, places, linestyle="none", marker=shape, markersize=size, color=color, markeredgecolor=edge,
          clip_on=False, label=name, zorder=3, gid=gid)  # fmt: skip


def _clamp(value: float, ends: Point) -> float:
    return min(max(value, ends[0]), ends[1])


def _finish(axes: Axes) -> None:
    """Say what the marks are in a row above the chart."""
    handles, names = axes.get_legend_handles_labels()
    if names:
        short = [name if len(name) <= LABEL_LONG else name[: LABEL_LONG - 1] + "…" for name in names]
        axes.legend(handles, short, loc="lower right", bbox_to_anchor=(1, 1), ncols=5, handletextpad=0.3,
                    columnspacing=1.2)  # fmt: skip
