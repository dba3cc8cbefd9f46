"""Small inline SVG charts: scales, ticks and axes, drawn at three widths so that text stays readable on any screen."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "diamond", "plus", "star", "down", "bar")
LETTER = 6.6
"""Width of a letter of a mark's text, in user units, on the safe side."""
LOG_FROM = 2.2
"""A positive axis whose ends are this many times apart is logarithmic."""


_UNIT = re.compile(r"(?<=\d) (?=(?:%|[KMG]iB|bits|ms|s|min|h)(?!\w))|(?<=\brank) (?=\d)")


@dataclass(frozen=True)
class Size:
    """Width and height of a drawing with its margins, in user units; `name` is what the style sheet shows it by."""

    name: str
    width: int
    height: int
    left: int = 58
    right: int = 18
    top: int = 16
    bottom: int = 46

    @property
    def x(self) -> tuple[float, float]:
        """Left and right end of the plot."""
        return self.left, self.width - self.right

    @property
    def y(self) -> tuple[float, float]:
        """Bottom and top of the plot, in this order: y grows downwards."""
        return self.height - self.bottom, self.top


WIDE = (Size("s", 380, 320), Size("m", 680, 380), Size("l", 1040, 460))
HALF = (Size("s", 380, 320), Size("m", 560, 360))


@dataclass(frozen=True)
class Scale:
    """From values to places."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], ends: tuple[float, float], *, log: bool | None = None) -> Scale:
        """A scale that holds all values with a little room; logarithmic where they span much, unless told."""
        known = [v for v in values if math.isfinite(v)]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        if log is None:
            log = low > 0 and high / low > LOG_FROM
        if log:
            room = max(math.log(high / low) * 0.06, 1e-6)
            return cls(low * math.exp(-room), high * math.exp(room), *ends, log=True)
        room = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
        return cls(low - room, high + room, *ends)

    def __call__(self, value: float) -> float:
        """Place of a value."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def clamp(self, value: float) -> float:
        """Place of a value, or of the nearer end where it lies outside."""
        return self(min(max(value, self.low), self.high))

    def holds(self, value: float) -> bool:
        """Whether a value lies between the ends."""
        return self.low <= value <= self.high

    def ticks(self, most: int) -> list[float]:
        """Round values between the ends, some `most` of them."""
        if self.log:
            steps = [m * 10.0**e for e in range(-12, 13) for m in (1, 2, 5)]
            inside = [v for v in steps if self.holds(v)]
            if len(inside) >= 3:
                return inside if len(inside) <= most else inside[:: math.ceil(len(inside) / most)]
        step = nice_step((self.high - self.low) / max(most, 1))
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]


def clipped(values: Iterable[float], needed: Iterable[float] = ()) -> list[float]:
    """The values that a chart should make room for: without the top tenth where that takes most of the room.

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


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is not less."""
    if not least > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= least * (1 - 1e-9))


def number(value: float) -> str:
    """A tick's label."""
    if value == 0:
        return "0"
    text = f"{value:.4g}"
    return f"{value:,.0f}" if "e" in text and abs(value) >= 1 else text


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels of ticks with no more digits than are needed to tell neighbours apart."""
    labels = [number(v) for v in values]
    for digits in range(5, 16):
        if len(set(labels)) == len(values):
            break
        labels = [f"{v:.{digits}g}" for v in values]
    return labels


def escape(text: object) -> str:
    """Text that may stand in an element or in a quoted attribute."""
    return html.escape(str(text), quote=True)


def prose(text: object) -> str:
    """Escaped text whose figures are not torn from their units at the end of a line."""
    return _UNIT.sub("&nbsp;", escape(text))


def place(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, content: object, *, anchor: str = "start", kind: str = "tick") -> str:
    """A text of a class (`tick`, `label`, `mark`)."""
    return f'<text x="{place(x)}" y="{place(y)}" text-anchor="{anchor}" class="{kind}">{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A line of a class."""
    return f'<line x1="{place(x1)}" y1="{place(y1)}" x2="{place(x2)}" y2="{place(y2)}" class="{kind}"/>'


def path(points: Sequence[tuple[float, float]], kind: str) -> str:
    """A line through points; empty for fewer than two."""
    if len(points) < 2:
        return ""
    return f'<path d="M{"L".join(f"{place(x)} {place(y)}" for x, y in points)}" class="{kind}"/>'


def steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of a line that keeps its height until the next point."""
    corners: list[tuple[float, float]] = []
    for x, y in points:
        if corners:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    return corners


def mark(x: float, y: float, shape: str, kind: str, extra: str = "") -> str:
    """A symbol of `symbols` at a point."""
    return f'<use href="#{shape}" x="{place(x)}" y="{place(y)}" class="{kind}"{extra}/>'


class Labels:
    """Texts of a drawing that keep out of each other's way, those put first where they want to be."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float, float]] = []

    def put(self, x: float, y: float, content: str, *, left: bool, kind: str = "mark", moves: Sequence[int]) -> str:
        """A text that ends (`left`) or begins at `x`, moved down by the first of `moves` that is free; else none."""
        wide = LETTER * len(content)
        for move in moves:
            box = (x - wide if left else x, y + move - 11, x if left else x + wide, y + move + 3)
            if all(box[0] >= b[2] or box[2] <= b[0] or box[1] >= b[3] or box[3] <= b[1] for b in self._taken):
                self._taken.append(box)
                return text(x, y + move, content, anchor="end" if left else "start", kind=kind)
        return ""


def axes(size: Size, x: Scale, y: Scale, x_name: str, y_name: str) -> str:
    """Grid, tick labels, and the names of both axes; names of logarithmic axes say so."""
    parts = []
    (left, right), (bottom, top) = size.x, size.y
    ticks = y.ticks(5)
    for value, label in zip(ticks, tick_labels(ticks), strict=True):
        parts.append(line(left, y(value), right, y(value), "grid"))
        parts.append(text(left - 8, y(value) + 4, label, anchor="end"))
    ticks = x.ticks(8)
    most = max(2, round((right - left) / (8 * max(map(len, tick_labels(ticks)), default=1) + 18)))
    ticks = x.ticks(min(8, most))
    for value, label in zip(ticks, tick_labels(ticks), strict=True):
        parts.append(line(x(value), bottom, x(value), bottom + 5, "axis"))
        parts.append(text(x(value), bottom + 20, label, anchor="middle"))
    parts.append(line(left, bottom, right, bottom, "axis"))
    parts.append(text(right, bottom + 39, x_name + (" (log scale)" if x.log else ""), anchor="end", kind="label"))
    name = escape(y_name + (" (log scale)" if y.log else ""))
    middle = (top + bottom) / 2
    parts.append(
        f'<text transform="translate(14 {place(middle)}) rotate(-90)" text-anchor="middle" class="label">{name}</text>'
    )
    return "".join(parts)


def figure(key: str, title: str, description: str, sizes: Sequence[Size], draw: Callable[[Size], str]) -> str:
    """A chart at every size, of which the style sheet shows the one that suits its container."""
    drawings = "".join(
        f'<svg class="at-{size.name}" viewBox="0 0 {size.width} {size.height}" role="img" '
        f'aria-labelledby="{key}-{size.name}-t {key}-{size.name}-d">'
        f'<title id="{key}-{size.name}-t">{escape(title)}</title>'
        f'<desc id="{key}-{size.name}-d">{escape(description)}</desc>{draw(size)}</svg>'
        for size in sizes
    )
    return f'<div class="chart of-{len(sizes)}">{drawings}</div>'


def symbols() -> str:
    """The symbols that `mark` uses, once for a page; about ten units across, their middle at the origin."""
    shapes = {
        "circle": '<circle r="4.5"/>',
        "square": '<rect x="-4.2" y="-4.2" width="8.4" height="8.4"/>',
        "triangle": '<path d="M0-5.2 5 3.6-5 3.6Z"/>',
        "diamond": '<path d="M0-5.8 5.2 0 0 5.8-5.2 0Z"/>',
        "plus": '<path d="M-1.7-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z"/>',
        "star": '<path d="M0-6 1.6-2 5.9-1.8 2.6.9 3.6 5 0 2.7-3.6 5-2.6.9-5.9-1.8-1.6-2Z"/>',
        "up": '<path d="M0-6 5 2-5 2Z"/>',
        "down": '<path d="M0 5.2-5-3.6 5-3.6Z"/>',
        "bar": '<rect x="-5" y="-2" width="10" height="4"/>',
        "best": '<path d="M0-10 9 0 0 10-9 0Z"/>',
    }
    inner = "".join(f'<symbol id="{name}" overflow="visible">{body}</symbol>' for name, body in shapes.items())
    return f'<svg width="0" height="0" aria-hidden="true" class="symbols">{inner}</svg>'
