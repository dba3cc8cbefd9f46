"""The study's figure: test loss over bytes, found plans against uniform ones."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor
from typing import Any

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 170, 28, 52
STEP = 0.05
FAR = 0.02
"""Points so much above all found ones are named at the upper edge instead, or all others would lie on one line."""
LABELLED = (
    *(f"{name} r8" for name in ("gptq 3-bit", "gptq 4-bit", "hqq 4-bit", "hqq 3-bit")),
    "nf4 4-bit r32",
    "gptq 4-bit r8, embeddings 8-bit",
)
"""Uniform plans that are named in the figure; the names of the others are tooltips."""
STYLE = """
svg{font:13px system-ui,sans-serif}
.bg{fill:#fff}.ink{fill:#1c1f23}.soft{fill:#5d6670}.grid{stroke:#e3e6ea}.axis{stroke:#8a939c}
.found{fill:#b3261e;stroke:#b3261e}.uniform{fill:#3d6fb4;stroke:#3d6fb4}.whole{stroke:#5d6670}
@media(prefers-color-scheme:dark){.bg{fill:#15181c}.ink{fill:#e8eaed}.soft{fill:#a3abb4}.grid{stroke:#2a2f36}
.found{fill:#ff8a80;stroke:#ff8a80}.uniform{fill:#82b1ff;stroke:#82b1ff}}
"""


def draw(rows: Sequence[Any], whole: Any | None) -> str:
    """An SVG of rows with `name`, `bytes`, `loss`, `budget` (of a found plan) and bits of `embeddings` (8: hollow).

    The row `whole` is drawn as a level, not a point.
    """
    points = [r for r in rows if not r.name.startswith("16-bit")]
    most = max(r.loss for r in points if r.budget) + FAR
    far = [r for r in points if r.loss > most]
    points = [r for r in points if r.loss <= most]
    xs = [r.bytes / 2**20 for r in points]
    ys = [r.loss for r in points] + ([whole.loss] if whole else [])
    x0, x1 = float(floor(min(xs)) - 3), float(ceil(max(xs)) + 3)
    y0, y1 = min(ys), max(ys)
    y0, y1 = y0 - 0.06 * (y1 - y0), y1 + 0.12 * (y1 - y0)

    def px(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Test loss over memory: found plans and uniform plans"><style>{STYLE}</style>',
        f'<rect class="bg" width="{WIDTH}" height="{HEIGHT}"/>',
    ]
    for k in range(ceil(y0 / STEP), floor(y1 / STEP) + 1):
        y = k * STEP
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>')
        out.append(f'<text class="soft" x="{LEFT - 8}" y="{py(y) + 4:.1f}" text-anchor="end">{y:.2f}</text>')
    for x in range(ceil(x0 / 5) * 5, int(x1) + 1, 5):
        out.append(f'<text class="soft" x="{px(x):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{x}</text>')
    out.append(
        f'<text class="ink" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
        "memory of model and adapter, MiB</text>"
        f'<text class="ink" x="{LEFT - 48}" y="{TOP - 10}">test loss, nats a token</text>'
    )
    if whole:
        out.append(
            f'<line class="whole" stroke-dasharray="5 4" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
            f'y1="{py(whole.loss):.1f}" y2="{py(whole.loss):.1f}"/>'
            f'<text class="soft" x="{WIDTH - RIGHT + 8}" y="{py(whole.loss) + 4:.1f}">{escape(whole.name)} '
            f"({whole.bytes / 2**20:.0f} MiB)</text>"
        )
    named: set[str] = set()
    for r in points:
        x, y = px(r.bytes / 2**20), py(r.loss)
        kind = "found" if r.budget else "uniform"
        hollow = ' fill-opacity="0" stroke-width="1.5"' if r.embeddings != 16 else ""
        if kind == "found":
            mark = f'rect class="{kind}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"{hollow}'
        else:
            mark = f'circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"{hollow}'
        out.append(f"<{mark}><title>{escape(r.name)}: {r.loss:.4f}</title></{mark.partition(' ')[0]}>")
        label = ("found by qra" if not hollow else "embeddings in 8 bits") if kind == "found" else ""
        if label and label not in named:
            named.add(label)
            side, anchor = (10, "start") if not hollow else (-10, "end")  # the cheaper side of hollow ones is free
            out.append(f'<text class="ink" x="{x + side:.1f}" y="{y + 5:.1f}" text-anchor="{anchor}">{label}</text>')
        elif r.name in LABELLED:
            out.append(f'<text class="soft" x="{x:.1f}" y="{y - 9:.1f}" text-anchor="middle">{escape(r.name)}</text>')
    if far:
        kinds: dict[str, list[float]] = {}
        for r in far:
            kinds.setdefault(r.name.rpartition(" r")[0], []).append(r.loss)
        spans = {kind: dict.fromkeys(f"{x:.2f}" for x in (min(some), max(some))) for kind, some in kinds.items()}
        names = ", ".join(f"{kind} {' to '.join(span)}" for kind, span in spans.items())
        out.append(f'<text class="soft" x="{LEFT + 130}" y="{TOP - 10}">far above: {escape(names)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
