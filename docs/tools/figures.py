"""Draws the figures of the documentation from recorded results: `python docs/tools/figures.py`.

Every number comes from a file in benchmarks/results/ or is computed exactly by the memory model. A figure has a ground
of its own, light or dark as the reader's screen, so that it can be read on any page.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from qra_search.app.report.charts import (
    CATEGORY_COLORS,
    DAMAGE_STEPS,
    MARKER_SHAPES,
    fit_axis,
    get_palette,
    make_figure,
    make_ramp,
    put_label,
    to_svg,
    use_chart_style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MIB = 2**20
SIZE = (760, 380)
NAMES = 150
"""Room for the names of lines at the right of a chart."""
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STRATEGIES = ("qra", "additive", "nsga2", "optuna:tpe", "random")
SMOLLM2 = {"layers": 30, "hidden": 576, "inner": 1536, "kv": 192, "head": 64, "vocabulary": 49152}
"""Of SmolLM2-135M; `bytes_figure` checks the sum against a recorded run."""


def main() -> None:
    """Write all figures into a folder; default: docs/figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for draw in (sensitivity_figure, quantizers_figure, anytime_figure, front_figure, bytes_figure):
        name = draw.__name__.removesuffix("_figure")
        with use_chart_style():
            (out / f"{name}.svg").write_text(to_svg(draw(), theme="screen"))
        print(out / f"{name}.svg")


def sensitivity_figure() -> Figure:
    """Heat map of the prior's damage at the lowest bit-width: kinds down, layers across, log scale."""
    from matplotlib.patches import Patch

    prior = json.loads((RESULTS / "sensitivities.json").read_text())
    damage = {
        name: max(row[0], 1e-9) for name, row in zip(prior["groups"], prior["bits_damage"], strict=True)
    }
    layers = 1 + max(_layer(name) for name in damage)
    low, high = min(damage.values()), max(damage.values())
    levels: list[list[float]] = [[math.nan] * layers for _ in KINDS]
    for name, value in damage.items():
        step = int(DAMAGE_STEPS * math.log(value / low) / math.log(high / low))
        levels[KINDS.index(name.rpartition(".")[2])][_layer(name)] = min(step, DAMAGE_STEPS - 1)
    figure, axes = make_figure("Sensitivity of each linear", (SIZE[0], 350), left=92, bottom=86)
    draw_heat(axes, KINDS, [str(layer) for layer in range(layers)], levels, make_ramp("damage", DAMAGE_STEPS))
    axes.set_title(f"rise of the loss at {prior['bits'][0]} bits, thousandths of a nat", loc="left")
    axes.set_xlabel("layer", loc="right")
    edges = [1000 * low * (high / low) ** (step / DAMAGE_STEPS) for step in range(DAMAGE_STEPS + 1)]
    names = [f"{a:.2g} to {b:.2g}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    steps = [
        Patch(color=color, label=name)
        for color, name in zip(make_ramp("damage", DAMAGE_STEPS), names, strict=True)
    ]
    figure.legend(
        handles=steps, loc="lower center", ncols=DAMAGE_STEPS, handlelength=1, columnspacing=1.4, fontsize=12
    )
    return figure


def draw_lines(axes: Axes, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Lines with marks, named at the right in the order in which they end."""
    lines = []
    for i, (name, points) in enumerate(series.items()):
        shape = MARKER_SHAPES[
            (i + i // len(MARKER_SHAPES)) % len(MARKER_SHAPES)
        ]  # the ninth has the first one's colour in another shape
        lines += axes.plot(
            *zip(*points, strict=True),
            color=CATEGORY_COLORS[i % len(CATEGORY_COLORS)],
            linewidth=2,
            marker=shape,
            markersize=7,
            label=name,
            clip_on=False,
        )
    by_end = sorted(zip(series.values(), lines, strict=True), key=lambda pair: -pair[0][-1][1])
    axes.legend(
        handles=[line for _, line in by_end], loc="upper left", bbox_to_anchor=(1.01, 1), handlelength=1.6
    )


def quantizers_figure() -> Figure:
    """Untuned loss against bits for each backend."""
    rows = _rows("quantizer_loss.jsonl")
    names = list(dict.fromkeys(r["backend"] for r in rows))
    series = {
        name: [(r["bits"], r["loss"]) for r in rows if r["backend"] == name and r["bits"] <= 4]
        for name in names
    }
    floor = rows[0]["unquantized_loss"]
    figure, axes = make_figure("Untuned loss under three quantizers", SIZE, right=NAMES)
    fit_axis(axes, "x", "bits", [bits for points in series.values() for bits, _ in points], log=False)
    axes.set_xticks(sorted({bits for points in series.values() for bits, _ in points}))
    fit_axis(
        axes,
        "y",
        "loss, nats a token",
        [loss for points in series.values() for _, loss in points] + [0.8 * floor],
    )
    axes.axhline(floor, color=get_palette()["soft"], linewidth=1, linestyle=(0, (5, 4)))
    put_label(axes, [], "unquantized", (axes.get_xlim()[0], floor), (4, 9))
    draw_lines(axes, series)
    return figure


def anytime_figure() -> Figure:
    """Median share of the possible gain that is left, against evaluations, for each strategy."""
    rows = _rows("strategies/raw.jsonl")
    left: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        budgets = [row["grid"].index(b) for b in row["budgets"]]
        best = [min(row["reference"][i], *_handed(rows, row, i)) for i in budgets]
        possible = sum(row["uniform"][i] - b for i, b in zip(budgets, best, strict=True))
        for point in row["checkpoints"]:
            missed = sum(point["handed"][i] - b for i, b in zip(budgets, best, strict=True))
            left.setdefault(row["strategy"], {}).setdefault(point["at"], []).append(missed / possible)
    series = {
        name: [(at, median(shares)) for at, shares in sorted(left[name].items())]
        for name in STRATEGIES
        if name in left
    }
    title = "Share of the possible gain that is left, median of the recorded searches"
    figure, axes = make_figure(title, SIZE, right=NAMES)
    fit_axis(axes, "x", "evaluations spent", [at for points in series.values() for at, _ in points], log=True)
    fit_axis(
        axes,
        "y",
        "share of the gain left",
        [share for points in series.values() for _, share in points],
        log=False,
    )
    axes.set_ylim(bottom=0.0)
    draw_lines(axes, series)
    return figure


def front_figure() -> Figure:
    """Test loss against bytes of the plans of two demos with the default quantizer."""
    rows = {(r["mean_bits"], r["mean_rank"]): r for r in _tuned()}
    figure, axes = make_figure("Plans of the demo on test data", SIZE, right=40)
    fit_axis(axes, "x", "memory, MiB", [r["memory_bytes"] / MIB for r in rows.values()], log=False)
    fit_axis(axes, "y", "test loss, nats a token", [r["test_loss"] for r in rows.values()], log=False)
    for color, bits in zip(CATEGORY_COLORS, (2.0, 3.0), strict=False):
        uniform = sorted(
            (r["memory_bytes"] / MIB, r["test_loss"]) for r in rows.values() if r["mean_bits"] == bits
        )
        axes.plot(*zip(*uniform, strict=True), color=color, linewidth=2)
    taken: list = []
    for r in rows.values():
        at, found = (r["memory_bytes"] / MIB, r["test_loss"]), r["role"] == "found"
        color = CATEGORY_COLORS[2 if found else int(r["mean_bits"] == 3.0)]
        axes.plot(
            *at, linestyle="none", marker="D" if found else "s", markersize=13 if found else 8, color=color
        )
        name = f"found, {at[1]:.3f}" if found else f"{r['mean_bits']:.0f} bits, rank {r['mean_rank']:.0f}"
        if found:
            right = bool(axes.transData.transform(at)[0] < SIZE[0] / 2)
            put_label(axes, taken, name, at, (14, 0), side="right" if right else "left", color=color)
        else:
            put_label(axes, taken, name, at, (0, 13), side="center", color=color)
    return figure


def bytes_figure() -> Figure:
    """What uniform plans of SmolLM2-135M take, by part.

    Raises:
        AssertionError: the sum is not what a recorded run of that plan took, with the quantizer of its time.
    """
    from qra_backends import make_backend

    sizes = SMOLLM2
    h, inner, kv = sizes["hidden"], sizes["inner"], sizes["kv"]
    shapes = [(h, h), (kv, h), (kv, h), (h, h), (inner, h), (inner, h), (h, inner)]
    rotary = 2 * 4 * sizes["head"] // 2  # two float32 buffers of frequencies
    fixed = 2 * (sizes["vocabulary"] * h + (2 * sizes["layers"] + 1) * h) + rotary
    plans = [(2, 8), (2, 32), (3, 8), (4, 8), (4, 32), (8, 8)]

    def parts(backend: str, bits: int, rank: int) -> tuple[float, ...]:
        storage = make_backend(backend).storage(bits)
        stored = sizes["layers"] * sum(storage.bytes(o, i) for o, i in shapes)
        codes = sizes["layers"] * sum(o * i for o, i in shapes) * bits // 8
        adapters = sizes["layers"] * sum(2 * rank * (o + i) for o, i in shapes)
        return fixed, codes, stored - codes, adapters

    recorded = {(r["mean_bits"], r["mean_rank"]): r["memory_bytes"] for r in _tuned()}
    assert sum(parts("reference-gptq", 2, 8)) == recorded[(2.0, 8.0)], recorded
    bars = [(f"{bits} bits, rank {rank}", parts("mixed-calibrated", bits, rank)) for bits, rank in plans]
    size = (SIZE[0], 90 + 44 * len(bars))
    figure, axes = make_figure("What uniform plans of SmolLM2-135M take", size, left=120, right=80)
    starts = [0.0] * len(bars)
    for i, part in enumerate(("not searched", "codes", "scales and zeros", "adapters")):
        widths = [amounts[i] / MIB for _, amounts in bars]
        axes.barh(range(len(bars)), widths, left=starts, height=0.65, color=CATEGORY_COLORS[i], label=part)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    for row, total in enumerate(starts):
        axes.annotate(f"{total:.1f} MiB", (total, row), (6, 0), textcoords="offset points", va="center")
    axes.set_xlabel("memory, MiB", loc="right")
    axes.grid(visible=False)
    axes.invert_yaxis()
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, handlelength=1)
    return figure


def draw_heat(
    axes: Axes,
    rows: Sequence[str],
    columns: Sequence[str],
    levels: Sequence[Sequence[float]],
    ramp: Sequence[str],
) -> None:
    """A grid of cells, coloured by the place of each level on a ramp; nan is left empty."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    axes.pcolormesh(
        np.asarray(levels, dtype=float),
        cmap=ListedColormap(ramp),
        vmin=0,
        vmax=len(ramp),
        edgecolors=matplotlib.rcParams["figure.facecolor"],
        linewidth=1,
    )
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    places = range(0, len(columns), 1 if len(columns) <= 17 else 5)
    axes.set_xticks([i + 0.5 for i in places], [columns[i] for i in places])
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    axes.tick_params(length=0)


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (RESULTS / name).read_text().splitlines() if row.strip()]


def _handed(rows: Sequence[dict[str, Any]], row: dict[str, Any], i: int) -> list[float]:
    """What any strategy handed over at a budget, on the landscape of a row."""
    same = [r for r in rows if (r["task"], r["seed"]) == (row["task"], row["seed"])]
    return [point["handed"][i] for r in same for point in r["checkpoints"]]


def _layer(name: str) -> int:
    return next(int(part) for part in name.split(".") if part.isdigit())


def _tuned() -> list[dict[str, Any]]:
    """Rows of plans that a demo with the default quantizer tuned in full."""
    return [r for r in _rows("demo.jsonl") if r["role"] != "search" and r["command"].startswith("qra demo")]


if __name__ == "__main__":
    main()
