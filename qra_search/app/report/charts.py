"""The charts of a run (loss over memory of its plans), the colours of the report, and how charts are drawn as SVG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qra_search.allocate.solve import (
    build_additive_table,
    compute_table_losses,
    list_least_rank_uniform_plans,
    solve_table,
    spread_budgets,
)
from qra_search.app.compare import Comparison, TunedPlan
from qra_search.app.rates import RateForecast
from qra_search.app.report.formatting import format_loss
from qra_search.schemas import Plan, format_level
from qra_search.space.memory import format_bytes
from qra_search.study.result import SearchResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import BboxBase

MIB = 2**20
PER_MILLE = 1e-3
LEGEND_ROW, LEGEND_GAP = 20, 22
"""Height of a legend's rows, and of the axis title below it."""
MIN_SPAN = 0.05
"""Share of the largest size that the memory axis spans at least."""
MARKERS = {
    # kind: colour, shape, size, opacity
    "other plans": ("dot", "o", 9, 0.75),
    "on the front": ("found", "o", 9, 1.0),
    "uniform plans (b bits, r rank)": ("uniform", "s", 8, 1.0),
    "plan found": ("best", "D", 13, 1.0),
}
OTHER, FRONT, UNIFORM, FOUND = MARKERS
PAGE_COLORS = {
    # (light theme, dark theme)
    "paper": ("#faf9f6", "#121417"),
    "surface": ("#ffffff", "#1a1d22"),
    "ink": ("#17191d", "#ece9e3"),
    "soft": ("#565c68", "#a7adb9"),
    "line": ("#e2dfd8", "#30343c"),
    "grid": ("#ecebe6", "#262a31"),
    "found": ("#0059a6", "#6db8ff"),
    "found-soft": ("#dcebf8", "#19324a"),
    "best": ("#c24a00", "#ff9d5c"),
    "uniform": ("#4f5663", "#b4bbc8"),
    "dot": ("#7f9cb8", "#6c8299"),
    "code": ("#f1efea", "#22262d"),
}
"""Colours by what they are for; no two names share one, so that a colour in a chart tells its name."""
COLOR_RAMPS = {
    # From the few to the many, one hue each, so that lightness alone tells them apart. (light theme, dark theme)
    "bits": (("#e4eef8", "#7fb2dd", "#2b6cb0", "#0f2f57"), ("#1e2d40", "#2f6297", "#6ba8e0", "#d6e8fb")),
    "rank": (("#f3e9f6", "#c79ad3", "#8a4a9e", "#471a57"), ("#33233a", "#74478a", "#bb8acb", "#f1def6")),
    "damage": (("#fdf0dc", "#f2b562", "#c9661b", "#6b2506"), ("#38291a", "#8a4f1c", "#dc8f45", "#fde3c2")),
}
DAMAGE_STEPS = 6
CATEGORY_COLORS = ("#0072b2", "#d55e00", "#009e73", "#a3478b", "#8a6d00", "#3d4a5c", "#c0392b", "#5b53b8")
"""Categories, after Okabe and Ito (2008), darkened for 3:1 against white; shapes tell them apart as well."""
CATEGORY_COLORS_DARK = (
    "#56b4e9",
    "#ff9d5c",
    "#3fd0a4",
    "#e39bd0",
    "#f0d34a",
    "#a9b7cc",
    "#ff8a7a",
    "#b1aaff",
)
INK, PAPER = "#000000", "#ffffff"
BRIGHT_GROUND = 0.45
"""Brightness of a ground, from 0 to 1, above which text on it is black."""
Size = tuple[int, int]
"""Width and height in units of an SVG, which are pixels of a page that shows it in its own size."""
CHART_SIZE: Size = (380, 360)
"""Of the report's charts: on a phone their texts keep nearly their size."""
UNITS_PER_INCH = 72
MARKER_SHAPES = ("o", "s", "^", "D", "P", "*", "v", "X")
LOG_AXIS_RATIO, LOG_TICKS_RATIO = 2.2, 8.0
"""A positive axis whose ends are so many times apart is logarithmic, and has ticks at 1, 2, 5, 10, ..."""
_POINT_SIZE = re.compile(r'="([\d.]+)pt"')
"""Sizes of a drawing in points: without the unit they are pixels."""
_NUMBERED_ID = re.compile(r' id="[A-Za-z.0-9]+_\d+"')
"""Ids that matplotlib gives to groups of a figure; several charts of a page would share them."""


def plot_front(result: SearchResult, plan: Plan | None) -> Figure:
    """Loss against bytes of every plan that was evaluated, the front, the uniform plans and the budgets."""
    space, front = result.space, {c.plan for c in result.front}
    marks: dict[str, list[tuple[float, float]]] = {kind: [] for kind in MARKERS}
    labels = []
    for p in result.candidates:
        place = (p.memory_bytes / MIB, p.loss)
        choice = space.uniform_choice(p.plan)
        if choice is not None:
            marks[UNIFORM].append(place)
            labels.append((f"{format_level(choice[0])}, r{choice[1]}", place, (8.0, 10.0)))
        else:
            marks[FRONT if p.plan in front else OTHER].append(place)
        if p.plan == plan:
            marks[FOUND].append(place)
            labels.insert(0, (f"found, {format_loss(p.loss)}", place, (13.0, 0.0)))
    kinds = [kind for kind in MARKERS if marks[kind]]
    title = "Loss against memory of every plan that was evaluated"
    with use_chart_style() as c:
        figure, axes = make_figure(title, CHART_SIZE, top=34 + LEGEND_ROW * len(kinds))
        budgets = [budget / MIB for budget in result.memory_budgets]
        sizes = [*(p.memory_bytes / MIB for p in result.candidates), *budgets]
        fit_axis(axes, "x", "memory, MiB", [*sizes, (1 - MIN_SPAN) * max(sizes)])
        _, top = fit_axis(axes, "y", "loss", [p.loss for p in result.candidates])
        line = [(p.memory_bytes / MIB, p.loss) for p in result.front]
        axes.plot(*zip(*line, strict=True), drawstyle="steps-post", color=c["found"], linewidth=2.25)
        for kind in kinds:
            _draw_marks(axes, kind, marks[kind], c)
        for budget in budgets:
            axes.axvline(budget, color=c["best"], linewidth=1.5, linestyle=(0, (3.3, 2.7)))
        sizes_of_budgets = [(format_bytes(b), (b / MIB, top), (7.0, -8.0)) for b in result.memory_budgets]
        _write_labels(axes, [*sizes_of_budgets, *labels])
        above = (0, 1 + LEGEND_GAP / axes.bbox.height)
        axes.legend(loc="lower left", bbox_to_anchor=above, borderaxespad=0)
    return figure


def plot_predicted_loss(result: SearchResult, plan: Plan) -> Figure:
    """Loss as the sensitivities predict it before tuning, against memory: plans of every size, the uniform plans of
    the least rank, and a plan."""
    space = result.space
    table = build_additive_table(space, result.sensitivities)
    uniform = list_least_rank_uniform_plans(space)
    budgets = sorted({*spread_budgets(space), *map(space.memory_bytes, uniform)})
    best = [solve_table(space, table, budget, exact=False) for budget in budgets]
    plans = [*best, *uniform, plan]
    losses = compute_table_losses(table, space.encode_many(plans)).tolist()
    places = list(zip([space.memory_bytes(p) / MIB for p in plans], losses, strict=True))
    line = places[: len(best)]
    squares = places[len(best) : -1]
    own = places[-1]
    labels = [(f"this plan, {format_loss(losses[-1])}", own, (13.0, 10.0))]
    for of_level, place in zip(uniform, squares, strict=True):
        labels.append((format_level(of_level.bits[0]), place, (8.0, 10.0)))
    with use_chart_style() as c:
        figure, axes = make_figure("Predicted loss against memory, before tuning", CHART_SIZE)
        fit_axis(axes, "x", "memory, MiB", [size for size, _ in places])
        fit_axis(axes, "y", "predicted loss, nats", losses)
        axes.plot(*zip(*line, strict=True), color=c["found"], linewidth=2.25)
        for kind, marks in ((UNIFORM, squares), (FOUND, [own])):
            _draw_marks(axes, kind, marks, c)
        _write_labels(axes, labels)
    return figure


def plot_tuned(comparison: Comparison) -> Figure:
    """Right answers (or the loss) over memory of all that was tuned, with 95% intervals; 16-bit LoRA is a line."""
    metric, space = comparison.judging_metric, comparison.space
    tunings = [t for t in comparison.tunings if not t.failed and t.role != "untuned"]
    beside = next((t for t in tunings if t.role == "16-bit"), None)
    shown = [t for t in tunings if t is not beside]
    is_share = bool(metric) and all(0 <= t.metrics[metric] <= 1 for t in tunings)
    scale, name = (100 if is_share else 1), f"{metric.replace('_', ' ')}{', %' * is_share}" or "test loss"

    def compute_error_bar(tuned: TunedPlan) -> tuple[float, float, float]:
        """The figure, and how far its interval reaches below and above."""
        if not metric:
            return tuned.loss, 0.0, 0.0
        middle = scale * tuned.metrics[metric]
        low, high = tuned.compute_metric_interval(metric) or (tuned.metrics[metric],) * 2
        return middle, max(0.0, middle - scale * low), max(0.0, scale * high - middle)

    figures = [compute_error_bar(t) for t in tunings]
    sizes = [t.memory_bytes / MIB for t in shown]
    with use_chart_style() as c:
        figure, axes = make_figure("What was tuned, over memory", CHART_SIZE)
        fit_axis(axes, "x", "memory, MiB", [*sizes, (1 - MIN_SPAN) * max(sizes)])
        fit_axis(axes, "y", name, [v for y, down, up in figures for v in (y - down, y + up)], log=False)
        if beside is not None:
            axes.axhline(
                compute_error_bar(beside)[0], color=c["uniform"], linewidth=1.5, linestyle=(0, (3.3, 2.7))
            )
        labels = (
            []
            if beside is None
            else [("16-bit LoRA", (min(sizes), compute_error_bar(beside)[0]), (0.0, 9.0))]
        )
        for tuned, size in zip(shown, sizes, strict=True):
            y, down, up = compute_error_bar(tuned)
            kind = FOUND if tuned is comparison.deployed else UNIFORM if tuned.role == "uniform" else FRONT
            color, shape, width, _ = MARKERS[kind]
            axes.errorbar(
                [size], [y], [[down], [up]], color=c[color], marker=shape, markersize=width, clip_on=False
            )
            choice = space.uniform_choice(tuned.plan)
            text = {"shuffled": "shuffled", "plan": "plan"}.get(tuned.role, "mixed")
            text = text if choice is None else f"{format_level(choice[0])}, r{choice[1]}"
            labels.append((text, (size, y), (9.0, 10.0)))
        _write_labels(axes, labels)
    return figure


def _draw_marks(axes: Axes, kind: str, places: Sequence[tuple[float, float]], c: Mapping[str, str]) -> None:
    color, shape, size, opacity = MARKERS[kind]
    axes.plot(
        *zip(*places, strict=True),
        linestyle="none",
        marker=shape,
        markersize=size,
        color=(c[color], opacity),
        markeredgecolor=c["paper"],
        clip_on=False,
        label=kind,
        zorder=3,
    )


def plot_rates(foretold: RateForecast) -> Figure:
    """Loss over the learning rate of the trials, a line for each length, and the rate that they foretell."""
    with use_chart_style() as c:
        figure, axes = make_figure("Trials of learning rates", CHART_SIZE)
        known = [trial for trial in foretold.trials if math.isfinite(trial.loss)]
        rates = [foretold.rate, *(trial.rate for trial in known)]
        fit_axis(axes, "x", "learning rate, thousandths", [rate / PER_MILLE for rate in rates], log=True)
        _, top = fit_axis(axes, "y", "validation loss", [trial.loss for trial in known])
        labels = [
            (f"{foretold.rate:g} for {foretold.steps} steps", (foretold.rate / PER_MILLE, top), (7.0, -8.0))
        ]
        axes.axvline(foretold.rate / PER_MILLE, color=c["best"], linewidth=1.5, linestyle=(0, (3.3, 2.7)))
        for length in sorted({trial.steps for trial in known}):
            line = sorted((t.rate / PER_MILLE, t.loss) for t in known if t.steps == length)
            axes.plot(*zip(*line, strict=True), color=c["found"], marker="o", markersize=9)
            labels.append((f"{length} steps", line[-1], (9.0, 10.0)))
        _write_labels(axes, labels)
    return figure


def _write_labels(axes: Axes, labels: Sequence[tuple[str, tuple[float, float], tuple[float, float]]]) -> None:
    """Write texts beside their points, on the side where there is room."""
    taken: list[BboxBase] = []
    for text, place, shift in labels:
        is_at_end = axes.transData.transform(place)[0] > CHART_SIZE[0] - 7 * len(text)
        side: Literal["left", "right"] = "left" if is_at_end else "right"
        put_label(axes, taken, text, place, shift, side=side, moves=(0, 18, 34))


def get_palette(*, dark: bool = False) -> dict[str, str]:
    """Colours of the page, of origins (`o-0`, ...) and of the damage ramp (`damage-0`, ...) in a theme, by name."""
    colors = {name: pair[dark] for name, pair in PAGE_COLORS.items()}
    colors |= {f"o-{i}": color for i, color in enumerate(CATEGORY_COLORS_DARK if dark else CATEGORY_COLORS)}
    ramp = make_ramp("damage", DAMAGE_STEPS, dark=dark)
    return colors | {f"damage-{i}": color for i, color in enumerate(ramp)}


def make_ramp(name: str, steps: int, *, dark: bool = False) -> list[str]:
    """So many colours of a ramp, from its first to its last, evenly apart; a single one from its middle."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    ramp = LinearSegmentedColormap.from_list(name, COLOR_RAMPS[name][dark])
    return [to_hex(color) for color in ramp(np.linspace(0, 1, steps) if steps > 1 else [0.5])]


def choose_text_color(color: str) -> str:
    """Black or white, for text on a ground of this colour; by its brightness after ITU-R BT.601."""
    from matplotlib.colors import to_rgb

    return INK if np.dot((0.299, 0.587, 0.114), to_rgb(color)) > BRIGHT_GROUND else PAPER


@contextmanager
def use_chart_style() -> Iterator[dict[str, str]]:
    """The settings that all charts are drawn under; gives the colours of the light theme by name."""
    import matplotlib

    c = get_palette()
    settings: Any = {
        "axes.axisbelow": True,
        "axes.edgecolor": c["soft"],
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.labelcolor": c["ink"],
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 13,
        "figure.facecolor": c["paper"],
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 12.5,
        "grid.color": c["grid"],
        "grid.linewidth": 1,
        "legend.fontsize": 12,
        "legend.frameon": False,
        "lines.solid_joinstyle": "round",
        "text.color": c["ink"],
        "text.parse_math": False,
        "xtick.color": c["soft"],
        "ytick.color": c["soft"],
        "ytick.major.size": 0,
    }
    with matplotlib.rc_context(settings):
        yield c


def make_figure(
    title: str, size: Size, *, left: int = 54, right: int = 18, top: int = 34, bottom: int = 48
) -> tuple[Figure, Axes]:
    """A figure of a size with axes within its margins; `title` is what a screen reader says."""
    from matplotlib.figure import Figure

    width, height = size
    inches = (width / UNITS_PER_INCH, height / UNITS_PER_INCH)
    figure = Figure(figsize=inches, dpi=UNITS_PER_INCH, label=title)
    inner = (width - left - right) / width, (height - top - bottom) / height
    return figure, figure.add_axes((left / width, bottom / height, *inner))


def fit_axis(
    axes: Axes, which: Literal["x", "y"], name: str, values: Iterable[float], *, log: bool | None = None
) -> tuple[float, float]:
    """Make an axis hold all finite values with a little room, with a few round ticks; returns its ends.

    Args:
        log: whether it is logarithmic, which its name then says; None: if the values are positive and span much.
    """
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, ScalarFormatter, StrMethodFormatter

    known = [v for v in values if math.isfinite(v)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    log = low > 0 and high / low > LOG_AXIS_RATIO if log is None else log
    if log:
        room = (high / low) ** 0.06 if high > low else 1.05
        ends = low / room, high * room
    else:
        width = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
        ends = low - width, high + width
    axes.set(**{f"{which}scale": "log" if log else "linear", f"{which}lim": ends})
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    most = 5 if which == "y" else max(2, min(8, round(axes.bbox.width / 80)))
    if log and high / low > LOG_TICKS_RATIO:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
        plain = ScalarFormatter(useOffset=False)
        plain.set_scientific(False)
        axis.set_major_formatter(plain)
    axis.set_minor_locator(FixedLocator([]))
    name += " (log scale)" if log else ""
    if which == "x":
        axes.set_xlabel(name, loc="right")
    else:
        axes.set_title(name, loc="left")
    return ends


def put_label(
    axes: Axes,
    taken: list[BboxBase],
    text: str,
    at: tuple[float, float],
    shift: tuple[float, float],
    *,
    side: Literal["left", "right", "center"] = "right",
    moves: Sequence[float] = (0,),
    **more: Any,
) -> None:
    """Write a text on a side of a point, so far across and up, moved down by the first of `moves` that is free; or not.

    `taken` are the places of the texts so far; the text's own is added. It lies on the colour of the page.
    """
    import matplotlib

    across = {"left": -shift[0], "right": shift[0], "center": 0.0}[side]
    align = {"left": "right", "right": "left", "center": "center"}[side]
    ground = matplotlib.rcParams["figure.facecolor"]
    more |= {"textcoords": "offset points", "ha": align, "va": "center", "annotation_clip": False}
    more |= {"fontsize": 12, "zorder": 4}
    more["bbox"] = {"facecolor": ground, "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    for move in moves:
        note = axes.annotate(text, at, (across, shift[1] - move), **more)
        box = note.get_window_extent()
        if not any(box.overlaps(other) for other in taken):
            taken.append(box)
            return
        note.remove()


def to_svg(figure: Figure, *, theme: Literal["screen", "page"] = "screen", key: str = "qra") -> str:
    """A figure drawn in light colours as SVG: text stays text, and the same figure gives the same bytes.

    Args:
        theme: `screen` has a second set of colours for dark screens; `page` takes them from the custom properties of
            the page that it is put into, and has no background and no title.
        key: is mixed into the ids of marks, which must be unique within a page.
    """
    import matplotlib

    figure.set_frameon(theme != "page")
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    title = {} if theme == "page" else {"Title": str(figure.get_label())}
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", metadata=nothing | title)
    text = buffer.getvalue()
    text = _POINT_SIZE.sub(r'="\1"', text[text.index("<svg") :], count=2)
    text = _NUMBERED_ID.sub("", text)
    for name, color in get_palette().items():
        text = text.replace(color, f"var(--{name})")
    if theme == "screen":
        light, dark = ("".join(f"--{n}:{c};" for n, c in get_palette(dark=d).items()) for d in (False, True))
        rules = f"<style>svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
        text = text.replace("<defs>", rules + "<defs>", 1)
    return text
