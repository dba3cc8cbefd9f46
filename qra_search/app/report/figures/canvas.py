"""How charts are drawn with matplotlib: the style, axes and labels; and how a figure is written as SVG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from qra_search.app.report.colors import get_palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import BboxBase

Size = tuple[int, int]
"""Width and height in units of an SVG, which are pixels of a page that shows it in its own size."""
WIDE: Size = (880, 420)
UNITS_PER_INCH = 72
SHAPES = ("o", "s", "^", "D", "P", "*", "v", "X")
LOG_FROM, LOG_TICKS_FROM = 2.2, 8.0
"""A positive axis whose ends are so many times apart is logarithmic, and has ticks at 1, 2, 5, 10, ..."""
_POINTS = re.compile(r'="([\d.]+)pt"')
"""Sizes of a drawing in points: without the unit they are pixels."""
_NUMBERED = re.compile(r' id="[A-Za-z.0-9]+_\d+"')
"""Ids that matplotlib gives to groups of a figure; several charts of a page would share them."""


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
    figure = Figure(
        figsize=(width / UNITS_PER_INCH, height / UNITS_PER_INCH), dpi=UNITS_PER_INCH, label=title
    )
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
    log = low > 0 and high / low > LOG_FROM if log is None else log
    if log:
        room = (high / low) ** 0.06 if high > low else 1.05
        ends = low / room, high * room
    else:
        width = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
        ends = low - width, high + width
    axes.set(**{f"{which}scale": "log" if log else "linear", f"{which}lim": ends})
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    most = 5 if which == "y" else max(2, min(8, round(axes.bbox.width / 80)))
    if log and high / low > LOG_TICKS_FROM:
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

    across, align = {"left": (-shift[0], "right"), "right": (shift[0], "left"), "center": (0.0, "center")}[
        side
    ]
    for move in moves:
        note = axes.annotate(
            text,
            at,
            (across, shift[1] - move),
            textcoords="offset points",
            ha=align,
            va="center",
            annotation_clip=False,
            fontsize=12,
            zorder=4,
            **more,
            bbox={
                "facecolor": matplotlib.rcParams["figure.facecolor"],
                "edgecolor": "none",
                "alpha": 0.8,
                "pad": 0.5,
            },
        )
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
    text = _POINTS.sub(r'="\1"', text[text.index("<svg") :], count=2)
    text = _NUMBERED.sub("", text)
    for name, color in get_palette().items():
        text = text.replace(color, f"var(--{name})")
    if theme == "screen":
        light, dark = (
            "".join(f"--{n}:{c};" for n, c in get_palette(dark=dark).items()) for dark in (False, True)
        )
        rules = f"<style>svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
        text = text.replace("<defs>", rules + "<defs>", 1)
    return text
