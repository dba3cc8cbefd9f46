"""The tables of `budgets.jsonl`, and their picture: bytes needed for a quality, on SmolLM2-135M and GSM8K.

    python -m benchmarks.study.budgets_table docs/images/budgets.svg

Each point of the picture is the mean over the seeds, which draw rows of their own; plans are tuned with trained scales.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.common import MIB, read
from benchmarks.study import protocol
from benchmarks.study.intervals import by_seed, change, mean_loss, paired, points, rows_of, table_of
from qra_search.report.figures.canvas import fit, new_figure, put_label, style, to_svg

REFERENCE = "16-bit r32"
NF4 = "nf4 4-bit r8"
USUAL = {
    REFERENCE: (protocol.BACKEND, 16, 32),
    NF4: ("bitsandbytes-nf4", 4, 8),
    "16-bit r16": (protocol.BACKEND, 16, 16),
}
"""Backend, width and rank of LoRA as it is usually done, embeddings in 16 bits: rank 16 trains about as many numbers as
the sensitivities' plans do with scales, rank 32 two times as many."""
SENSITIVITIES = "sensitivities"
UNIFORM_3 = "uniform 3-bit r8"
ISOLATED = f"{SENSITIVITIES} in {UNIFORM_3}"
"""The plan of the sensitivities at exactly the bytes of the uniform one: what choosing by layer brings."""
ALIKE = ("plan", "prior", "stored", "init", "scales", "steps", "compute")
"""What lines of one row of the table have in common."""
SHOWN = {"scales": True, "init": "default", "steps": protocol.FINETUNE.steps}
"""What plans of the picture, and of the table of what searches found, have in common."""
CURVES: dict[str, dict[str, Any]] = {
    "found by qra": {"stored": "trellis", "compute": protocol.COMPUTE},
    "the same, groups of 64": {"stored": "gptq", "prior": 5, "compute": "bfloat16"},
}
"""In the picture: what lines of a curve have in common."""
UNIFORM = {
    "uniform 2-bit r8, embeddings 16-bit": "2 bits, embeddings 16",
    "uniform 3-bit r8": "3 bits everywhere",
    "uniform 4-bit r8": "4 bits everywhere",
}
NAMES = {REFERENCE: "16-bit LoRA, rank 32", NF4: "QLoRA, nf4, rank 8"}
SIZE = (760, 420)


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Mean test loss over seeds, and the difference to 16-bit LoRA with an interval of 95% over rows and seeds."""
    rival = {(d["seed"], d["steps"], d["compute"]): d for d in lines if d["plan"] == REFERENCE}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for d in lines:
        if (d["seed"], d["steps"], d["compute"]) in rival:
            groups[tuple(d[name] for name in ALIKE)].append(d)
    chosen = any("row_right" in d for d in lines)
    head = ["plan", "prior", "stored", "start", "scales", "steps", "MiB", "embeddings", "computed", "seeds"]
    head += ["test loss"]
    head += [f"against {REFERENCE}"] + ["right choices", f"against {REFERENCE}, points"] * chosen
    body = []
    for (plan, sensitivities, stored, init, scales, steps, compute), some in groups.items():
        others = [rival[d["seed"], steps, compute] for d in some]
        if plan in USUAL:
            stored = sensitivities = "–"
        cells = [plan, sensitivities, stored, init, "trained" if scales else "fitted", steps]
        cells += [f"{some[0]['memory_bytes'] / MIB:.1f}", " ".join(map(str, some[0].get("embeddings") or [16]))]
        cells += [compute]
        cells += [str(len(some)), f"{mean_loss(some):.4f}", change(some, others)]
        if chosen:
            cells += [f"{rows_of(some, 'row_right').mean():.1%}", points(some, others)]
        body.append(list(map(str, cells)))
    return table_of(head, body)


def trellis_table(lines: list[dict[str, Any]]) -> list[str]:
    """Plans in trellis codes and LoRA as it is usually done, the smallest first, by the seeds that both sides have."""
    by_plan: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    alike = {name: SHOWN[name] for name in ("init", "steps")} | {"compute": protocol.COMPUTE}
    for d in lines:
        if alike.items() <= d.items() and (d["plan"] in USUAL or d["stored"] == "trellis"):
            by_plan[d["plan"]].setdefault(d["seed"], d)
    rows = []
    for plan, mine in by_plan.items():
        some, others = paired(mine, by_plan[REFERENCE])
        if not some:
            continue
        bits = " ".join(f"{n}x{b.removeprefix('trellis-')}" for b, n in some[0]["bits"].items())
        cells = [plan, f"{some[0]['memory_bytes'] / MIB:.1f}", bits, " ".join(map(str, some[0]["embeddings"] or [16]))]
        cells += [str(len(some)), f"{mean_loss(some):.4f}", "–" if plan == REFERENCE else change(some, others)]
        cells.append(change(*paired(mine, by_plan[UNIFORM_3])) if plan == ISOLATED else "–")
        rows.append((some[0]["memory_bytes"], plan, cells))
    head = ["plan", "MiB", "linears at each width", "embeddings", "seeds", "test loss", f"against {REFERENCE}"]
    return table_of([*head, f"against {UNIFORM_3}"], [cells for *_, cells in sorted(rows)])


def searched_table(lines: list[dict[str, Any]]) -> list[str]:
    """Mean test loss of the plans that searches found, and the difference to the sensitivities' of the same seeds."""
    by_plan: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for d in lines:
        if d["plan"] not in USUAL and (SHOWN | {"stored": "gptq"}).items() <= d.items():
            by_plan[d["plan"]].setdefault(d["seed"], d)
    rows = []
    for plan, mine in by_plan.items():
        strategy, _, budget = plan.partition(" ")
        some, others = paired(mine, by_plan.get(f"{SENSITIVITIES} {budget}", {}))
        if not some:
            continue
        size, embeddings = f"{some[0]['memory_bytes'] / MIB:.1f}", " ".join(map(str, some[0]["embeddings"]))
        against = "–" if strategy == SENSITIVITIES else change(some, others)
        cells = [strategy, size, embeddings, str(len(some)), f"{mean_loss(some):.4f}", against]
        rows.append((budget, mean_loss(some), cells))
    head = ["within", "found by", "MiB", "embeddings", "seeds", "test loss", "against the sensitivities'"]
    return table_of(head, [[budget, *cells] for budget, _, cells in sorted(rows)])


def points_of(lines: list[dict[str, Any]], reference: dict[int, dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """MiB and mean test loss by plan, brought to the rows of all seeds by what 16-bit LoRA has on those of its own.

    Args:
        reference: lines of 16-bit LoRA by seed.
    """
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["plan"]].append(line)
    whole = mean_loss(list(reference.values()))
    return {
        plan: (
            some[0]["memory_bytes"] / MIB,
            mean_loss(some) - mean_loss([reference[d["seed"]] for d in some]) + whole,
        )
        for plan, some in groups.items()
    }


def draw() -> str:
    """The picture, an SVG."""
    lines = [d for d in read(protocol.RESULTS / "budgets.jsonl") if d["steps"] == SHOWN["steps"]]
    usual = [d for d in lines if d["plan"] in USUAL]
    sixteen = {
        compute: by_seed(d for d in usual if d["plan"] == REFERENCE and d["compute"] == compute)
        for compute in ("bfloat16", protocol.COMPUTE)
    }
    rivals: dict[str, tuple[float, float]] = {}
    for compute, reference in sixteen.items():  # the latter, if it is there
        rivals |= points_of([d for d in usual if d["compute"] == compute], reference)
    rivals = {name: rivals[n] for n, name in NAMES.items()}
    uniform: dict[str, tuple[float, float]] = {}
    curves = {}
    for label, alike in CURVES.items():
        some = [d for d in lines if (SHOWN | alike).items() <= d.items()]
        plans = points_of(some, sixteen[alike["compute"]])
        curves[label] = sorted(at for n, at in plans.items() if re.fullmatch(rf"{SENSITIVITIES} \d+ MiB", n))
        uniform = uniform or {UNIFORM[n]: at for n, at in plans.items() if n in UNIFORM}
    with style() as c:
        figure, (axes,) = new_figure("Bytes needed for a quality: test loss over memory", SIZE)
        shown = [*rivals.values(), *uniform.values(), *(at for found in curves.values() for at in found)]
        fit(axes, "x", "memory of model and adapter, MiB", [size for size, _ in shown], log=True)
        fit(axes, "y", "test loss, nats a token", [loss for _, loss in shown], log=False)
        taken: list = []
        for (label, found), color in zip(curves.items(), ("best", "soft"), strict=True):
            if found:
                axes.plot(*zip(*found, strict=True), marker="s", markersize=9, color=c[color], linewidth=2, zorder=3)
                put_label(axes, taken, label, found[0], (12, 0), fontweight="bold")
        for color, some in (("found", uniform), ("soft", rivals)):
            for name, at in some.items():
                axes.plot(*at, marker="o", markersize=9, color=c[color], linestyle="none", clip_on=False)
                side = "left" if name == NAMES[REFERENCE] else "right"
                put_label(axes, taken, name, at, (10, 0), side=side, moves=(0, 14, -14), color=c["soft"])
    return to_svg(figure, theme="screen")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw())
