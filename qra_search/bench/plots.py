"""Anytime plots of a benchmark: one HTML page that stands alone, and a small SVG for documents."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#000000", "#7f7f7f", "#9467bd",
    "#bcbd22", "#17becf",
)  # fmt: skip
LEAST = 0.003
"""Shares below are drawn here: the axis is logarithmic."""
PANEL = (360, 250)
MARGIN = (52, 28, 120, 36)


def curves(setting: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Strategy to its anytime curve: evaluations, median share left, and the interval's ends."""
    lines = {}
    for name in setting["strategies"]:
        points = [p for p in setting["checkpoints"] if name in p["pooled"]]
        if points:
            lines[name] = {"at": [p["evaluations"] for p in points]} | {
                key: [p["pooled"][name][key] for p in points] for key in ("median", "low", "high")
            }
    return lines


def write_html(path: Path, tables: dict[str, Any], *, plotlyjs: bool | str = True) -> None:
    """All settings on one page, each with a panel of all tasks and its tasks in a menu."""
    import plotly.graph_objects as go

    parts: list[str] = []
    for setting in tables["settings"]:
        if not setting["checkpoints"]:
            continue
        figure = go.Figure()
        for i, (name, curve) in enumerate(curves(setting).items()):
            colour = COLOURS[i % len(COLOURS)]
            middle, low, high = (np.maximum(curve[key], LEAST).tolist() for key in ("median", "low", "high"))
            figure.add_scatter(
                x=curve["at"] + curve["at"][::-1], y=high + low[::-1], fill="toself", fillcolor=colour, opacity=0.12,
                line={"width": 0}, hoverinfo="skip", showlegend=False, legendgroup=name,
            )  # fmt: skip
            figure.add_scatter(
                x=curve["at"], y=middle, name=name, mode="lines+markers", line={"color": colour}, legendgroup=name
            )
        figure.update_layout(
            title=f"{setting['kind']}: {len(setting['tasks'])} tasks, {setting['seeds']} seeds",
            xaxis={"title": "full evaluations spent", "type": "log"},
            yaxis={"title": "share of the possible gain that is left", "type": "log"},
            template="plotly_white",
            height=520,
        )
        parts.append(figure.to_html(full_html=False, include_plotlyjs=plotlyjs if not parts else False))
    page = "<!doctype html><meta charset='utf-8'><title>Search strategies, anytime</title>\n" + "\n".join(parts)
    path.write_text(page + "\n")


def write_svg(path: Path, tables: dict[str, Any]) -> None:
    """One panel for each setting, side by side."""
    settings = [s for s in tables["settings"] if s["checkpoints"]]
    left, top, right, bottom = MARGIN
    width, height = PANEL[0] + left + right, PANEL[1] + top + bottom
    body = [_panel(setting, i * width) for i, setting in enumerate(settings)]
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * max(len(settings), 1)}" height="{height}" '
        f'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _panel(setting: dict[str, Any], offset: int) -> str:
    left, top, _, _ = MARGIN
    wide, high = PANEL
    lines = curves(setting)
    at = [x for curve in lines.values() for x in curve["at"]]
    values = [min(max(y, LEAST), 10.0) for curve in lines.values() for y in curve["median"]]
    x_low, x_high = np.log10(min(at)), np.log10(max(max(at), min(at) * 1.01))
    y_low, y_high = np.log10(min(values)) - 0.05, np.log10(max(*values, 1.0)) + 0.05

    def place(x: float, y: float) -> tuple[float, float]:
        across = (np.log10(x) - x_low) / (x_high - x_low)
        up = (np.log10(min(max(y, LEAST), 10.0)) - y_low) / (y_high - y_low)
        return left + wide * across, top + high * (1 - up)

    out = [f'<g transform="translate({offset},0)">', _text(left, 16, f"{setting['kind']}, share of the gain left")]
    for y in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
        if y_low <= np.log10(y) <= y_high:
            _, py = place(min(at), y)
            out.append(f'<line x1="{left}" x2="{left + wide}" y1="{py:.1f}" y2="{py:.1f}" stroke="#ddd"/>')
            out.append(_text(left - 6, py + 4, f"{y:g}", "end"))
    for x in sorted(set(at)):
        px, _ = place(x, 1.0)
        out.append(_text(px, top + high + 16, f"{x:g}", "middle"))
    out.append(_text(left + wide / 2, top + high + 31, "full evaluations spent", "middle"))
    ends = sorted((place(c["at"][-1], c["median"][-1])[1], name) for name, c in lines.items())
    label = dict(zip((name for _, name in ends), _spread([y for y, _ in ends]), strict=True))
    for i, (name, curve) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        points = " ".join(
            "{:.1f},{:.1f}".format(*place(x, y)) for x, y in zip(curve["at"], curve["median"], strict=True)
        )
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        out.append(_text(left + wide + 5, label[name] + 4, name, fill=colour))
    return "\n".join([*out, "</g>"])


def _spread(heights: list[float], gap: float = 12.0) -> list[float]:
    """Heights, ascending, moved down so that labels do not overlap."""
    placed: list[float] = []
    for y in heights:
        placed.append(y if not placed else max(y, placed[-1] + gap))
    return placed


def _text(x: float, y: float, text: str, anchor: str = "start", fill: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'
