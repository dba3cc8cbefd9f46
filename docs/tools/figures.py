"""Draws the figures of the documentation from recorded results: `python docs/tools/figures.py`.

Every number comes from a file in benchmarks/results/ or is computed exactly by the memory model. A figure has a ground
of its own, light or dark as the reader's screen, so that it can be read on any page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from qra_search.report.colors import ORIGINS, ORIGINS_DARK, ramp, text_on
from qra_search.report.html.svg import Scale, Size, axes, line, mark, path, symbols, text

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MIB = 2**20
SIZE = Size("l", 760, 380)
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HEAT_STEPS = 7
LEGEND = 84
LINE = 16
"""Least distance of names, one above the other."""
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
        (out / f"{name}.svg").write_text(draw())
        print(out / f"{name}.svg")


def sensitivity_figure() -> str:
    """Heat map of the prior's damage at the lowest bit-width: kinds down, layers across, log scale."""
    prior = json.loads((RESULTS / "prior.json").read_text())
    damage = {name: max(row[0], 1e-9) for name, row in zip(prior["groups"], prior["bits_damage"], strict=True)}
    layers = 1 + max(_layer(name) for name in damage)
    low, high = min(damage.values()), max(damage.values())
    scale = Scale(low, high, 0, HEAT_STEPS, log=True)
    left, top, width, height = 92, 40, 20, 30
    parts = [text(left, 22, f"rise of the loss at {prior['bits'][0]} bits, thousandths of a nat", kind="label")]
    for row, kind in enumerate(KINDS):
        parts.append(text(left - 10, top + row * height + 20, kind, anchor="end"))
        for name, value in damage.items():
            if name.endswith(kind):
                step = min(int(scale(value)), HEAT_STEPS - 1)
                x, y = left + _layer(name) * width, top + row * height
                parts.append(f'<rect x="{x}" y="{y}" width="{width - 1}" height="{height - 1}" class="h{step}"/>')
    bottom = top + len(KINDS) * height
    for layer in range(0, layers, 5):
        parts.append(text(left + layer * width + width / 2, bottom + 16, layer, anchor="middle"))
    parts.append(text(left + layers * width, bottom + 34, "layer", anchor="end", kind="label"))
    for step in range(HEAT_STEPS + 1):
        x = left + step * LEGEND
        if step < HEAT_STEPS:
            parts.append(f'<rect x="{x}" y="{bottom + 48}" width="{LEGEND - 1}" height="16" class="h{step}"/>')
        edge = 1000 * low * (high / low) ** (step / HEAT_STEPS)
        parts.append(text(x, bottom + 80, f"{edge:.2g}", anchor="middle"))
    return _svg(Size("l", left + layers * width + 24, bottom + 94), "Sensitivity of each linear", "".join(parts))


def quantizers_figure() -> str:
    """Untuned loss against bits for each backend."""
    rows = _rows("quantizer_loss.jsonl")
    names = list(dict.fromkeys(r["backend"] for r in rows))
    series = {name: [(r["bits"], r["loss"]) for r in rows if r["backend"] == name and r["bits"] <= 4] for name in names}
    floor = rows[0]["unquantized_loss"]
    size = Size("s", SIZE.width, SIZE.height)  # few ticks
    x = Scale(1.7, 4.9, *size.x)
    y = Scale.over([loss for points in series.values() for _, loss in points] + [0.8 * floor], size.y)
    parts = [axes(size, x, y, "bits", "loss, nats a token")]
    parts += [line(size.x[0], y(floor), size.x[1], y(floor), "rival")]
    parts.append(text(size.x[0] + 4, y(floor) - 6, "unquantized", kind="mark"))
    return _svg(size, "Untuned loss under three quantizers", "".join(parts) + _lines(series, x, y))


def anytime_figure() -> str:
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
        name: [(at, median(shares)) for at, shares in sorted(left[name].items())] for name in STRATEGIES if name in left
    }
    known = [at for points in series.values() for at, _ in points]
    x = Scale.over([*known, 1.4 * max(known)], SIZE.x, log=True)  # room for names
    y = Scale(0.0, 1.1, *SIZE.y)
    title = "Share of the possible gain that is left, median of the recorded searches"
    parts = axes(SIZE, x, y, "evaluations spent", "share of the gain left")
    return _svg(SIZE, title, parts + _lines(series, x, y))


def front_figure() -> str:
    """Test loss against bytes of the plans of two demos with the default quantizer."""
    rows = {(r["mean_bits"], r["mean_rank"]): r for r in _tuned()}
    x = Scale.over([r["memory_bytes"] / MIB for r in rows.values()], SIZE.x, log=False)
    y = Scale.over([r["test_loss"] for r in rows.values()], SIZE.y, log=False)
    parts = [axes(SIZE, x, y, "memory, MiB", "test loss, nats a token")]
    for i, bits in enumerate((2.0, 3.0)):
        uniform = sorted((r["memory_bytes"], r["test_loss"]) for r in rows.values() if r["mean_bits"] == bits)
        parts.append(path([(x(b / MIB), y(loss)) for b, loss in uniform], f"s{i}"))
    for r in rows.values():
        px, py, found = x(r["memory_bytes"] / MIB), y(r["test_loss"]), r["role"] == "found"
        kind = 2 if found else int(r["mean_bits"] == 3.0)
        parts.append(mark(px, py, "best" if found else "square", f"f{kind}"))
        name = f"found, {r['test_loss']:.3f}" if found else f"{r['mean_bits']:.0f} bits, rank {r['mean_rank']:.0f}"
        end = px > SIZE.width - 130
        place = (px + (-14 if end else 14), py + 5) if found else (px + (-10 if end else 10), py - 8)
        parts.append(text(*place, name, anchor="end" if end else "start", kind=f"t{kind}"))
    return _svg(SIZE, "Plans of the demo on test data", "".join(parts))


def bytes_figure() -> str:
    """What uniform plans of SmolLM2-135M take, by part.

    Raises:
        AssertionError: the sum is not what a recorded run of that plan took.
    """
    from qra_backends import make_backend

    sizes, backend = SMOLLM2, make_backend("mixed-calibrated")
    h, inner, kv = sizes["hidden"], sizes["inner"], sizes["kv"]
    shapes = [(h, h), (kv, h), (kv, h), (h, h), (inner, h), (inner, h), (h, inner)]
    rotary = 2 * 4 * sizes["head"] // 2  # two float32 buffers of frequencies
    fixed = 2 * (sizes["vocabulary"] * h + (2 * sizes["layers"] + 1) * h) + rotary
    plans = [(2, 8), (2, 32), (3, 8), (4, 8), (4, 32), (8, 8)]
    bars = []
    for bits, rank in plans:
        stored = sizes["layers"] * sum(backend.storage(bits).bytes(o, i) for o, i in shapes)
        codes = sizes["layers"] * sum(o * i for o, i in shapes) * bits // 8
        adapters = sizes["layers"] * sum(2 * rank * (o + i) for o, i in shapes)
        bars.append((f"{bits} bits, rank {rank}", (fixed, codes, stored - codes, adapters)))
    recorded = {(r["mean_bits"], r["mean_rank"]): r["memory_bytes"] for r in _tuned()}
    assert sum(bars[0][1]) == recorded[(2.0, 8.0)], (sum(bars[0][1]), recorded)
    size = Size("l", 760, 60 + 44 * len(bars), left=120, right=80)
    x = Scale(0.0, max(sum(parts) for _, parts in bars) / MIB, *size.x)
    parts = []
    for row, (name, amounts) in enumerate(bars):
        y, start = 44 + 44 * row, 0.0
        parts.append(text(size.left - 10, y + 19, name, anchor="end"))
        for i, amount in enumerate(amounts):
            width = x(amount / MIB) - x(0)
            parts.append(f'<rect x="{x(start):.1f}" y="{y}" width="{width:.1f}" height="28" class="f{i}"/>')
            start += amount / MIB
        parts.append(text(x(start) + 6, y + 19, f"{start:.1f} MiB", kind="mark"))
    for i, name in enumerate(("not searched", "codes", "scales and zeros", "adapters")):
        parts.append(mark(size.left + 8 + 150 * i, 22, "square", f"f{i}"))
        parts.append(text(size.left + 20 + 150 * i, 27, name))
    return _svg(size, "What uniform plans of SmolLM2-135M take", "".join(parts))


def _lines(series: dict[str, list[tuple[float, float]]], x: Scale, y: Scale) -> str:
    """Lines with marks, each named at its right; names that would collide are moved down."""
    parts, above = [], 0.0
    for i, (name, points) in sorted(enumerate(series.items()), key=lambda s: y(s[1][1][-1][1])):
        places = [(x(a), y(b)) for a, b in points]
        parts.append(path(places, f"s{i}"))
        parts += [mark(a, b, ("circle", "square", "triangle", "diamond", "plus")[i % 5], f"f{i}") for a, b in places]
        above = max(above + LINE, places[-1][1] + 4)
        parts.append(text(places[-1][0] + 10, above, name, kind=f"t{i}"))
    return "".join(parts)


def _svg(size: Size, title: str, body: str) -> str:
    """A whole file, with a style for light and one for dark screens."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size.width} {size.height}" role="img">'
        f"<title>{title}</title><style>{_style(False)}@media (prefers-color-scheme:dark){{{_style(True)}}}</style>"
        f'<rect width="100%" height="100%" rx="6" class="ground"/>{symbols()}{body}</svg>\n'
    )


def _style(dark: bool) -> str:
    ground, ink, faint, grid = ("#1b1f27", "#e6e8ec", "#a9b1bd", "#39404c") if dark else (
        "#ffffff", "#1b1f27", "#505967", "#dfe3e8")  # fmt: skip
    colours = ORIGINS_DARK if dark else ORIGINS
    rules = [
        f".ground{{fill:{ground}}}text{{font:13px system-ui,sans-serif;fill:{faint}}}.label,.mark{{fill:{ink}}}",
        f".grid{{stroke:{grid}}}.axis{{stroke:{faint}}}.rival{{stroke:{faint};stroke-dasharray:5 4}}",
    ]
    for i, colour in enumerate(colours[:5]):
        rules.append(f".s{i}{{stroke:{colour};stroke-width:2;fill:none}}.f{i},.t{i}{{fill:{colour}}}")
    for i, colour in enumerate(ramp("prior", HEAT_STEPS, dark=dark)):
        rules.append(f".h{i}{{fill:{colour};stroke:{text_on(colour)};stroke-opacity:.15}}")
    return "".join(rules)


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
    return [r for r in _rows("demo.jsonl") if r["role"] != "search" and "backend" not in r["command"]]


if __name__ == "__main__":
    main()
