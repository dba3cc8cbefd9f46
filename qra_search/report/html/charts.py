"""The charts of a report: front, trace, predictions; each a function from gathered data to SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qra_search.report.data import RunData, Trace
from qra_search.report.html import svg
from qra_search.report.html.svg import Scale, Size
from qra_search.report.words import Finding, loss_text
from qra_search.space.levels import level_words
from qra_search.space.memory import format_bytes

MIB = 2**20
UNIFORM = "uniform"
COLOURS = 7
"""Colours that origins take in turn; the eighth is the prior's."""


def origin_class(run: RunData, origin: str) -> str:
    """The class that colours an origin; uniform plans keep one of their own."""
    if origin == UNIFORM:
        return "o-uniform"
    others = [o for o in run.origins if o != UNIFORM]
    return f"o-{others.index(origin) % COLOURS}" if origin in others else "o-0"


def origin_shape(run: RunData, origin: str) -> str:
    """The shape of an origin's points."""
    if origin == UNIFORM:
        return "square"
    others = [o for o in run.origins if o != UNIFORM]
    shapes = [s for s in svg.SHAPES if s != "square"]
    return shapes[others.index(origin) % len(shapes)] if origin in others else "circle"


def front_chart(run: RunData, key: str) -> str:
    """Loss against bytes of every plan, the front, the uniform plans and the budgets."""
    result = run.result
    budgets = result.memory_budgets
    found = run.finding
    losses = svg.clipped((c.loss for c in run.shown), _known(found))
    within = [c for c in run.shown if c.loss <= max(losses)]
    sizes = [c.memory_bytes / MIB for c in within] + [b / MIB for b in budgets]

    def draw(size: Size) -> str:
        x, y = Scale.over(sizes, size.x, log=False), Scale.over(losses, size.y)
        parts = [svg.axes(size, x, y, "memory, MiB", "loss")]
        parts += [svg.line(x(b / MIB), size.y[0], x(b / MIB), size.y[1], "budget") for b in budgets]
        corners = svg.steps([(x.clamp(c.memory_bytes / MIB), y.clamp(c.loss)) for c in result.front])
        parts.append(svg.path(corners, "front"))
        front = {c.plan.key for c in result.front}
        labels, texts = svg.Labels(), []
        for i, c in enumerate(run.shown):
            if c.plan == run.plan:
                px, py = x.clamp(c.memory_bytes / MIB), y.clamp(c.loss)
                best = svg.mark(px, py, "best", "point best", f' data-p="{i}"')
                left = px > size.width * 0.6
                name, at = f"found, {c.loss:.3g}", px + (-14 if left else 14)
                texts += [best, labels.put(at, py + 4, name, left=left, kind="mark strong", moves=[0])]
        for budget in budgets:
            left = x(budget / MIB) > size.width * 0.6
            at = x(budget / MIB) + (-7 if left else 7)
            texts.append(labels.put(at, size.y[1] + 12, format_bytes(budget), left=left, moves=[0, 16, 32]))
        for i, c in enumerate(run.shown):
            px, py = x.clamp(c.memory_bytes / MIB), y.clamp(c.loss)
            beyond = not (x.holds(c.memory_bytes / MIB) and y.holds(c.loss))
            kind = "uniform" if c.plan.is_uniform else ("on-front" if c.plan.key in front else "plan")
            shape = "up" if beyond else ("square" if c.plan.is_uniform else "circle")
            parts.append(svg.mark(px, py, shape, f"point {kind}", f' data-p="{i}"'))
            if c.plan.is_uniform:
                name = f"{level_words(c.plan.bits[0])}, r{c.plan.ranks[0]}"
                if beyond:
                    name += f" is beyond: {c.loss:.3g} at {format_bytes(c.memory_bytes)}"
                left = px > size.width - (90 if not beyond else 0.6 * size.width)
                at, height = px + (-9 if left else 9), py + (19 if beyond else -7)
                texts.append(labels.put(at, height, name, left=left, moves=[0, 16, 32] if beyond else [0, 18]))
        parts += texts
        return "".join(parts)

    summary = f"{len(result.candidates)} plans, {len(result.front)} of them on the front."
    if found is not None:
        summary += f" The plan found has loss {loss_text(found.loss)} at {format_bytes(found.memory_bytes)}."
    return svg.figure(f"{key}-front", "Loss against memory of every plan that was evaluated", summary, svg.WIDE, draw)


def trace_chart(run: RunData, key: str, *, half: bool = True) -> str:
    """Best loss within each budget against evaluations spent, with the trials behind it by origin.

    `half`: it shares its row with another chart.
    """
    traces = [t for t in run.traces if t.points]
    lines = _uniform_lines(run, traces)
    limit = max((t.budget for t in traces), default=0)
    dots = [
        (spent, t.loss, t.proposal.origin or "proposal")
        for t, spent in zip(run.result.trials, run.spent, strict=True)
        if t.evaluation is not None and t.fidelity >= 1.0 and t.evaluation.memory_bytes <= limit
    ]
    final = [t.points[-1][1] for t in traces] + list(lines.values())
    levels = svg.clipped([loss for _, loss, _ in dots], final)
    end = max([*run.spent, 1.0])

    def draw(size: Size) -> str:
        x = Scale(0.0, end * 1.02, *size.x)
        y = Scale.over(levels, size.y)
        parts = [svg.axes(size, x, y, "evaluations spent", "best loss")]
        for loss in lines.values():
            parts.append(svg.line(size.x[0], y(loss), size.x[1], y(loss), "rival"))
        for spent, loss, origin in dots:
            if y.holds(loss):
                parts.append(svg.mark(x(spent), y(loss), origin_shape(run, origin), f"dot {origin_class(run, origin)}"))
        for trace in traces:
            corners = svg.steps([(x(a), y.clamp(b)) for a, b in trace.points])
            parts.append(svg.path(corners, "trace"))
            if len(traces) > 1 and corners:
                parts.append(
                    svg.text(corners[-1][0], corners[-1][1] - 6, format_bytes(trace.budget), anchor="end", kind="mark")
                )
        if len(traces) == 1 and lines:
            level = next(iter(lines.values()))
            parts.append(svg.text(size.x[1], y(level) - 7, "best uniform plan", anchor="end", kind="mark"))
        return "".join(parts)

    ends = "; ".join(f"{loss_text(t.points[-1][1])} within {format_bytes(t.budget)}" for t in traces)
    title = "Best loss within the budget against evaluations spent"
    return svg.figure(f"{key}-trace", title, f"The search ended at {ends}.", svg.HALF if half else svg.WIDE, draw)


def prediction_chart(run: RunData, key: str) -> str:
    """Seen against predicted losses, with the line where the two are equal."""
    pairs = run.predictions
    values = svg.clipped(seen for _, _, seen in pairs)

    def draw(size: Size) -> str:
        x, y = Scale.over(values, size.x), Scale.over(values, size.y)
        parts = [
            svg.axes(size, x, y, "predicted loss", "seen loss"),
            svg.line(x(x.low), y(x.low), x(x.high), y(x.high), "diagonal"),
        ]
        for trial, predicted, seen in pairs:
            std, origin = trial.proposal.predicted_std, trial.proposal.origin or "proposal"
            if std is not None and math.isfinite(std):
                ends = x.clamp(predicted - std), x.clamp(predicted + std)
                parts.append(svg.line(ends[0], y.clamp(seen), ends[1], y.clamp(seen), "spread"))
            kind = f"dot {origin_class(run, origin)}"
            parts.append(svg.mark(x.clamp(predicted), y.clamp(seen), origin_shape(run, origin), kind))
        return "".join(parts)

    return svg.figure(f"{key}-predicted", "Seen against predicted losses", prediction_text(run), svg.HALF, draw)


def prediction_text(run: RunData) -> str:
    """How good the predictions were, in a sentence."""
    predicted = np.array([p for _, p, _ in run.predictions])
    seen = np.array([s for _, _, s in run.predictions])
    error = float(np.mean(np.abs(predicted - seen)))
    text = f"{len(seen)} predictions, off by {error:.3g} on average"
    if len(seen) >= 3 and np.ptp(predicted) > 0 and np.ptp(seen) > 0:
        order = np.corrcoef(_ranks(predicted), _ranks(seen))[0, 1]
        text += f"; rank correlation {order:.2f}"
    return text + "."


def fronts_chart(runs: Sequence[RunData]) -> str:
    """The fronts of several runs in one chart."""
    points = [[(c.memory_bytes / MIB, c.loss) for c in run.result.front] for run in runs]
    budgets = sorted({b for run in runs for b in run.result.memory_budgets})

    def draw(size: Size) -> str:
        x = Scale.over([a for p in points for a, _ in p] + [b / MIB for b in budgets], size.x, log=False)
        y = Scale.over([b for p in points for _, b in p], size.y)
        parts = [svg.axes(size, x, y, "memory, MiB", "loss")]
        parts += [svg.line(x(b / MIB), size.y[0], x(b / MIB), size.y[1], "budget") for b in budgets]
        for i, front in enumerate(points):
            places = [(x(a), y(b)) for a, b in front]
            parts.append(svg.path(svg.steps(places), f"trace o-{i % 8}"))
            parts += [svg.mark(a, b, svg.SHAPES[i % 8], f"point o-{i % 8}") for a, b in places]
        return "".join(parts)

    names = ", ".join(f"{run.name}: {len(front)} plans" for run, front in zip(runs, points, strict=True))
    return svg.figure("all-fronts", "The fronts of all runs", names, svg.WIDE, draw)


def traces_chart(runs: Sequence[RunData]) -> str:
    """Best loss within the largest budget of each run against evaluations spent."""
    traces = [run.traces[-1].points if run.traces else () for run in runs]

    def draw(size: Size) -> str:
        x = Scale(0.0, max([a for t in traces for a, _ in t], default=1.0) * 1.02, *size.x)
        y = Scale.over([b for t in traces for _, b in t], size.y)
        parts = [svg.axes(size, x, y, "evaluations spent", "best loss")]
        for i, trace in enumerate(traces):
            parts.append(svg.path(svg.steps([(x(a), y(b)) for a, b in trace]), f"trace o-{i % 8}"))
        return "".join(parts)

    names = ", ".join(run.name for run in runs)
    return svg.figure("all-traces", "Best loss of all runs against evaluations spent", names, svg.WIDE, draw)


def _known(found: Finding | None) -> list[float]:
    """The losses that a finding names."""
    return [] if found is None else [v for v in (found.loss, found.rival_loss) if found.data == "validation"]


def _uniform_lines(run: RunData, traces: Sequence[Trace]) -> dict[int, float]:
    """Loss of the best uniform plan within each budget of the traces."""
    lines = {}
    for trace in traces:
        fitting = [c.loss for c in run.result.uniform if c.memory_bytes <= trace.budget]
        if fitting and len(traces) == 1:
            lines[trace.budget] = min(fitting)
    return lines


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]
