"""How charts are drawn with matplotlib: the style, axes and labels; and how a figure is written, as SVG or as PNG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from qra_search.report.colors import ORIGINS, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import BboxBase

Size = tuple[int, int]
"""Width and height in units of an SVG, which are pixels of a page that shows it in its own size."""
WIDE: Size = (1040, 460)
UNITS_PER_INCH = 72
PNG_ZOOM = 2
"""Pixels of a PNG for each unit."""
SHAPES = ("o", "s", "^", "D", "P", "*", "v", "X")
LOG_FROM, LOG_TICKS_FROM = 2.2, 8.0
"""A positive axis whose ends are so many times apart is logarithmic, and has ticks at 1, 2, 5, 10, ..."""
HALO = "halo"
"""Group id of texts that lie on other marks: they get an outline in the colour of the page."""
HALO_RULE = ".halo text{{paint-order:stroke;stroke:{};stroke-width:3.5px;stroke-linejoin:round}}"
FONTS = "system-ui, sans-serif"
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_DECIMALS, _FAMILY = re.compile(r"-?\d+\.\d+"), re.compile(r"'[^;]*sans-serif")


@contextmanager
def style(dark: bool = False) -> Iterator[dict[str, str]]:
    """The settings that all charts are drawn under; gives the colours of the theme by name."""
    import matplotlib

    c = palette(dark=dark)
    settings: Any = {
        "axes.axisbelow": True, "axes.edgecolor": c["soft"], "axes.facecolor": "none", "axes.grid": True,
        "axes.grid.axis": "y", "axes.labelcolor": c["ink"], "axes.spines.left": False, "axes.spines.right": False,
        "axes.spines.top": False, "axes.titlesize": 13, "figure.facecolor": c["paper"], "font.size": 12.5,
        "grid.color": c["grid"], "grid.linewidth": 1, "legend.fontsize": 12, "legend.frameon": False,
        "lines.solid_joinstyle": "round", "text.color": c["ink"], "text.parse_math": False, "xtick.color": c["soft"],
        "ytick.color": c["soft"], "ytick.major.size": 0,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield c


def new_figure(
    title: str, size: Size, *, panels: int = 1, left: int = 54, right: int = 18, top: int = 34, bottom: int = 48
) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side, each of a size with margins inside it; `title` is what a screen reader says."""
    from matplotlib.figure import Figure

    width, height = size
    whole = width * max(panels, 1)
    figure = Figure(figsize=(whole / UNITS_PER_INCH, height / UNITS_PER_INCH), dpi=UNITS_PER_INCH, label=title)
    inner = (width - left - right) / whole, (height - top - bottom) / height
    return figure, [figure.add_axes(((i * width + left) / whole, bottom / height, *inner)) for i in range(panels)]


def fit(
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
    axes: Axes, taken: list[BboxBase], text: str, at: tuple[float, float], shift: tuple[float, float], *,
    side: Literal["left", "right", "center"] = "right", moves: Sequence[float] = (0,), **more: Any,
) -> None:  # fmt: skip
    """Write a text on a side of a point, so far across and up, moved down by the first of `moves` that is free; or not.

    `taken` are the places of the texts so far; the text's own is added.
    """
    across, align = {"left": (-shift[0], "right"), "right": (shift[0], "left"), "center": (0.0, "center")}[side]
    for move in moves:
        note = axes.annotate(
            text, at, (across, shift[1] - move), textcoords="offset points", ha=align, va="center",
            annotation_clip=False, gid=HALO, fontsize=12, **more,
        )  # fmt: skip
        box = note.get_window_extent()
        if not any(box.overlaps(other) for other in taken):
            taken.append(box)
            return
        note.remove()


def draw_lines(axes: Axes, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Lines with marks, named at the right in the order in which they end."""
    lines = []
    for i, (name, points) in enumerate(series.items()):
        shape = SHAPES[(i + i // len(SHAPES)) % len(SHAPES)]  # the ninth has the first one's colour in another shape
        lines += axes.plot(*zip(*points, strict=True), color=ORIGINS[i % len(ORIGINS)], linewidth=2, marker=shape,
                           markersize=7, label=name, clip_on=False)  # fmt: skip
    by_end = sorted(zip(series.values(), lines, strict=True), key=lambda pair: -pair[0][-1][1])
    axes.legend(handles=[line for _, line in by_end], loc="upper left", bbox_to_anchor=(1.01, 1), handlelength=1.6)


def to_png(figure: Figure) -> bytes:
    """A figure as PNG, in the colours that it was drawn in."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PNG_ZOOM * UNITS_PER_INCH)
    return buffer.getvalue()


def to_svg(
    figure: Figure, *, summary: str = "", theme: Literal["own", "screen", "page"] = "own", key: str = "qra",
    hover: Mapping[str, Sequence[object]] | None = None,
) -> str:  # fmt: skip
    """A figure as SVG: text stays text, and the same figure gives the same bytes.

    Args:
        theme: `own` keeps the colours; `screen` has a second set for dark screens; `page` is for a page that has
            `page_rules`: no background, and points that say which they are (`data-p`) instead of a tooltip.
            The last two are for figures drawn in light colours.
        key: begins the ids, which must be unique within a page.
        hover: for the group id of an artist, what each of its points says: a tooltip, or its number on a page.
    """
    import matplotlib
    from matplotlib.colors import to_hex

    figure.set_frameon(theme != "page")
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    _, _, width, height = root.attrib["viewBox"].split()
    root[:] = [child for child in root if child.find(f"{_SVG}style") is None]
    _tidy(root, hover or {}, theme == "page")
    root.attrib = {"viewBox": f"0 0 {width} {height}", "role": "img", "stroke-linejoin": "round"}
    heads = {"title": str(figure.get_label())} | ({"desc": summary} if summary else {})
    if theme == "page":
        root.set("aria-labelledby", " ".join(f"{key}-{tag}" for tag in heads))
    else:
        root.attrib |= {"xmlns": "http://www.w3.org/2000/svg", "width": width, "height": height}
        rules = HALO_RULE.format(to_hex(figure.get_facecolor()))
        if theme == "screen":
            dark = palette(dark=True)
            rules += f"@media (prefers-color-scheme:dark){{{_rules(dark)}{HALO_RULE.format(dark['paper'])}}}"
        heads["style"] = rules
    for place, (tag, text) in enumerate(heads.items()):
        element = ElementTree.Element(tag, {"id": f"{key}-{tag}"} if theme == "page" else {})
        element.text = text
        root.insert(place, element)
    if theme != "page":
        ElementTree.indent(root, "")  # a line for each element, so that a diff shows what has changed
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def page_rules() -> str:
    """Rules by which a page replaces the light colours of its charts by its own custom properties."""
    return _rules({name: f"var(--{name})" for name in palette()}) + HALO_RULE.format("var(--paper)")


def shape_path(shape: str, size: float) -> str:
    """The outline of a mark about the origin, as an SVG path: for legends that are HTML."""
    from matplotlib.markers import MarkerStyle
    from matplotlib.transforms import Affine2D

    marker = MarkerStyle(shape)
    corners: Any = (
        marker.get_path().transformed(marker.get_transform() + Affine2D().scale(size, -size)).to_polygons()[0]
    )
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "Z"


def _rules(colors: Mapping[str, str]) -> str:
    light = palette()
    return "".join(
        f'svg [style*="{of}: {light[name]}"]{{{of}:{to}!important}}'
        for name, to in colors.items()
        for of in ("fill", "stroke")
    )


def _tidy(root: ElementTree.Element, hover: Mapping[str, Sequence[object]], on_page: bool) -> None:
    """Tell points what they say, and strip what matplotlib writes and nobody needs."""
    for group in root.iter(f"{_SVG}g"):
        name = group.attrib.pop("id", "")
        if name.startswith(HALO):
            group.set("class", HALO)
        for mark, text in zip(group.iter(f"{_SVG}use"), hover.get(name, ()), strict=False):
            if on_page:
                mark.set("data-p", str(text))
            else:
                ElementTree.SubElement(mark, f"{_SVG}title").text = str(text)
    for marks in root.iter(f"{_SVG}defs"):
        for mark in marks:  # its style is said again where it is used
            mark.attrib.pop("style", "")
    for element in root.iter():
        element.tag, element.tail = element.tag.removeprefix(_SVG), None
        element.text = element.text if element.tag in ("text", "title") else None
        if _LINK in element.attrib:
            element.set("href", element.attrib.pop(_LINK))
        if "rotate(-0 " in element.get("transform", ""):
            del element.attrib["transform"]
        for name in element.attrib.keys() - {"style", "id", "class"}:
            element.set(name, _DECIMALS.sub(_short, " ".join(element.attrib[name].split())))
        if "style" in element.attrib:
            element.set("style", _FAMILY.sub(FONTS, element.attrib["style"]))


def _short(number: re.Match[str]) -> str:
    text = f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
