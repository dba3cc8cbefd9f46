"""The study's figure: test loss over bytes, found plans against uniform ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qra_search.report.figures.canvas import fit, new_figure, put_label, style, to_svg

SIZE = (760, 420)
RIGHT = 170
"""Room for the name of the level."""
ROOM = 3
"""MiB to the left of the smallest plan, for its name."""
FAR = 0.02
"""Points so much above all found ones are named at the upper edge instead, or all others would lie on one line."""
LABELLED = (
    *(f"{name} r8" for name in ("gptq 3-bit", "gptq 4-bit", "hqq 4-bit", "hqq 3-bit")),
    "nf4 4-bit r32",
    "gptq 4-bit r8, embeddings 8-bit",
)
"""Uniform plans that are named in the figure."""
FOUND, SMALL = "found by qra", "embeddings in 8 bits"


def draw(rows: Sequence[Any], whole: Any | None) -> str:
    """An SVG of rows with `name`, `bytes`, `loss`, `budget` (of a found plan) and bits of `embeddings` (8: hollow).

    The row `whole` is drawn as a level, not a point.
    """
    points = [r for r in rows if not r.name.startswith("16-bit")]
    most = max(r.loss for r in points if r.budget) + FAR
    far = [r for r in points if r.loss > most]
    points = [r for r in points if r.loss <= most]
    kinds = {(bool(found), small): [r for r in points if bool(r.budget) is found and (r.embeddings != 16) is small]
             for found in (False, True) for small in (False, True)}  # fmt: skip
    with style() as c:
        title = "Test loss over memory: found plans and uniform plans"
        figure, (axes,) = new_figure(title, SIZE, right=RIGHT)
        sizes = [r.bytes / 2**20 for r in points]
        fit(axes, "x", "memory of model and adapter, MiB", [min(sizes) - ROOM, *sizes], log=False)
        levels = [r.loss for r in points] + ([whole.loss] if whole else [])
        fit(axes, "y", "test loss, nats a token", levels, log=False)
        if whole:
            axes.axhline(whole.loss, color=c["soft"], linewidth=1, linestyle=(0, (5, 4)))
            name = f"{whole.name} ({whole.bytes / 2**20:.0f} MiB)"
            axes.annotate(name, (1, whole.loss), (8, 0), xycoords=("axes fraction", "data"), va="center",
                          textcoords="offset points", color=c["soft"])  # fmt: skip
        taken: list = []
        for (found, small), some in kinds.items():
            color, shape = (c["best"], "s") if found else (c["found"], "o")
            axes.plot(
                [r.bytes / 2**20 for r in some], [r.loss for r in some], linestyle="none", marker=shape, markersize=9,
                color=color, markerfacecolor=c["paper"] if small else color, markeredgewidth=1.5, clip_on=False,
                zorder=3,
            )  # fmt: skip
            if found and some:  # the cheaper side of hollow ones is free
                at = (some[0].bytes / 2**20, some[0].loss)
                put_label(axes, taken, SMALL if small else FOUND, at, (10, 0), side="left" if small else "right")
        for r in points:
            if r.name in LABELLED:
                put_label(axes, taken, r.name, (r.bytes / 2**20, r.loss), (0, 13), side="center", moves=(0, 27),
                          color=c["soft"])  # fmt: skip
        if far:
            groups: dict[str, list[float]] = {}
            for r in far:
                groups.setdefault(r.name.rpartition(" r")[0], []).append(r.loss)
            spans = {kind: dict.fromkeys(f"{x:.2f}" for x in (min(some), max(some))) for kind, some in groups.items()}
            names = ", ".join(f"{kind} {' to '.join(span)}" for kind, span in spans.items())
            axes.set_title(f"far above: {names}", loc="right", color=c["soft"], fontsize=12)
    return to_svg(figure, theme="screen")
