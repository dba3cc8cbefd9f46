"""The README's picture: bytes needed for a quality, on SmolLM2-135M and GSM8K.

    python benchmarks/study/budgets_figure.py docs/images/budgets.svg

Each point is the mean over the seeds of `budgets.jsonl` that drew rows of their own; plans are tuned with trained
scales, from the usual start if such lines are there.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from budgets_table import EARLIER, NF4, REFERENCE, USUAL, whole
from lines import MIB, RESULTS, read

from qra_search.report.figures.canvas import fit, new_figure, put_label, style, to_svg

SIZE = (760, 420)
TUNED = {"own_rows": True, "scales": True, "zeros": "16-bit", "prior": 5, "steps": EARLIER["steps"]}
"""What plans of the picture share."""
STARTS = ("default", "calibrated")
"""The first that a plan was tuned with is taken."""
NAMES = {REFERENCE: "16-bit LoRA, rank 32", NF4: "QLoRA, nf4, rank 8"}
HIGHEST = 1.25
"""Test loss; plans above are left out."""


def means(lines: list[dict[str, Any]], key: str) -> dict[str, tuple[float, float]]:
    """MiB and mean test loss by name."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line[key]].append(line)
    return {n: (s[0]["memory_bytes"] / MIB, float(np.mean([d["test_loss"] for d in s]))) for n, s in groups.items()}


def draw() -> str:
    lines = list(map(whole, read(RESULTS / "budgets.jsonl")))
    plans = means([d for d in lines if d["plan"] in USUAL and d["own_rows"] and d["steps"] == TUNED["steps"]], "plan")
    alike = [d for d in lines if d["plan"] not in USUAL and all(d[k] == TUNED[k] for k in TUNED)]
    for start in reversed(STARTS):
        plans |= means([d for d in alike if d["init"] == start], "plan")
    rivals = {name: plans[n] for n, name in NAMES.items()}
    found = sorted(at for n, at in plans.items() if n.startswith("sens") and at[1] < HIGHEST)
    uniform = {n.replace("-bit r8", " bits everywhere"): at for n, at in plans.items() if n.startswith("uniform")}
    with style() as c:
        figure, (axes,) = new_figure("Bytes needed for a quality: test loss over memory", SIZE)
        points = [*rivals.values(), *uniform.values(), *found]
        fit(axes, "x", "memory of model and adapter, MiB", [size for size, _ in points], log=True)
        fit(axes, "y", "test loss, nats a token", [loss for _, loss in points], log=False)
        axes.plot(*zip(*found, strict=True), marker="s", markersize=9, color=c["best"], linewidth=2, zorder=3)
        taken: list = []
        put_label(axes, taken, "found by qra", found[0], (12, 0), fontweight="bold")
        for color, some in (("found", uniform), ("soft", rivals)):
            for name, at in some.items():
                axes.plot(*at, marker="o", markersize=9, color=c[color], linestyle="none", clip_on=False)
                side = "left" if name == NAMES[REFERENCE] else "right"
                put_label(axes, taken, name, at, (10, 0), side=side, moves=(0, 14, -14), color=c["soft"])
    return to_svg(figure, theme="screen")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw())
