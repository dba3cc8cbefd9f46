"""Pictures of the lines of `finetunes.py`: right answers over memory, and losses over the length of tuning.

python -m benchmarks.study.finetunes_picture --task banking77 --out docs/images/finetunes.svg
python -m benchmarks.study.finetunes_picture --lengths --out docs/images/lengths.svg
"""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import MIB, read_lines
from benchmarks.study.finetune_settings import RESULTS, read_settings
from benchmarks.study.finetunes_table import REFERENCE, read_losses
from benchmarks.study.intervals import difference
from qra_search.app.report.charts import fit_axis, make_figure, put_label, to_svg, use_chart_style

SIZE = (760, 420)
SHORT = RESULTS.with_name("finetunes_other.jsonl")
"""Lines of other numbers of steps, without answers: `--set steps=60 --set answer_rows=0`."""
SERIES = {
    "plan": ("plans of qra", "best", "s"),
    "uniform": ("one width", "found", "o"),
    "shuffled": ("plans shuffled", "soft", "v"),
    "merged": ("16-bit LoRA merged, then quantized", "soft", "D"),
    "first-wider": ("first layers wider", "soft", "^"),
}
"""Label, color and marker of what has many points; a rival has its name."""
LOWEST = -8
"""Points further below 16-bit LoRA are said in their label, as the others would lie on one line beside them."""


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="banking77")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--lines", type=Path, default=RESULTS)
    parser.add_argument(
        "--lengths", action="store_true", help="draw losses over the length, also of `finetunes_other.jsonl`"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="draw rows of other settings"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    settings, _ = read_settings(options.set)
    lines = read_lines(options.lines)
    if options.lengths:
        picture = draw_lengths([*lines, *read_lines(SHORT)], options.task, options.model, settings)
    else:
        picture = draw(lines, options.task, options.model, settings)
    options.out.write_text(picture)


def draw(lines: Sequence[dict[str, Any]], task: str, model: str, settings: dict[str, Any]) -> str:
    """An SVG: each row is a point, its right answers above those of 16-bit LoRA with the same seeds; rows of other
    settings and the untuned model are left out."""
    points: dict[str, list[tuple[float, float]]] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        tuned = line["spec"]["kind"] != "untuned"
        same = all(value == settings.get(name) for name, value in line["settings"].items())
        if tuned and same and (line["task"], line["model"]) == (task, model):
            rows.setdefault(line["row"], []).append(line)
    reference = {line["seed"]: line["right"] for line in rows[REFERENCE]}
    for name, some in rows.items():
        spec = some[0]["spec"]
        series = "shuffled" if "shuffle" in spec else spec["kind"] if spec["kind"] in SERIES else name
        above = [
            100 * (line["right"] - reference[line["seed"]]) for line in some if line["seed"] in reference
        ]
        points.setdefault(series, []).append((some[0]["memory_bytes"] / MIB, float(np.mean(above))))
    with use_chart_style() as colors:
        figure, axes = make_figure("Right answers over memory: plans of qra, QLoRA, 16-bit LoRA", SIZE)
        every = [point for some in points.values() for point in some if point[1] >= LOWEST]
        fit_axis(axes, "x", "memory of model and adapter, MiB", [size for size, _ in every], log=True)
        fit_axis(axes, "y", "right answers, points against 16-bit LoRA", [above for _, above in every])
        taken: list[Any] = []
        for series, some in points.items():
            label, color, marker = SERIES.get(series, (series, "soft", "o"))
            label += "".join(f" ({gap:.0f} in {size:.0f} MiB)" for size, gap in some if gap < LOWEST)
            some = sorted(point for point in some if point[1] >= LOWEST)
            axes.plot(
                *zip(*some, strict=True),
                marker=marker,
                markersize=9,
                color=colors[color],
                linewidth=2,
                linestyle="-" if series == "plan" else "none",
                clip_on=False,
            )
            side = "left" if series == "first-wider" or series not in SERIES else "right"
            # Where no other series is beside it.
            at = some[-1] if series == "uniform" else min(some, key=lambda point: point[1])
            put_label(axes, taken, label, at, (12, 0), side=side, moves=(0, 14, -14, 28, -28))
    return to_svg(figure, theme="screen")


def draw_lengths(
    lines: Sequence[dict[str, Any]], task: str, model: str, settings: dict[str, Any], seed: int = 0
) -> str:
    """An SVG: by how much the loss of rows of three lengths or more is above that of 16-bit LoRA, over the steps of
    tuning; one seed, with 95% intervals over test rows."""
    known: dict[int, dict[str, dict[str, Any]]] = {}
    for line in lines:
        same = all(
            v == settings.get(k) for k, v in line["settings"].items() if k not in ("steps", "answer_rows")
        )
        if same and (line["task"], line["model"], line["seed"]) == (task, model, seed):
            known.setdefault(line["settings"]["steps"], {})[line["row"]] = line
    above: dict[str, list[tuple[int, float, float, float]]] = {}
    for steps, of_rows in sorted(known.items()):
        for row, line in of_rows.items() if REFERENCE in of_rows else ():
            low, share, high = difference(read_losses([line]), read_losses([of_rows[REFERENCE]]))
            above.setdefault(row, []).append((steps, 100 * low, 100 * share, 100 * high))
    above = {row: points for row, points in above.items() if row != REFERENCE and len(points) > 2}
    lengths = sorted(known)
    ends = [share for points in above.values() for _, low, _, high in points for share in (low, high)]
    with use_chart_style() as colors:
        figure, axes = make_figure("Loss above 16-bit LoRA's, over the length of tuning", SIZE)
        fit_axis(axes, "x", "steps of 8 rows", [*lengths, 2.5 * max(lengths)], log=True)  # room for names
        fit_axis(axes, "y", "loss above 16-bit LoRA's, %", [0, *ends])
        taken: list[Any] = []
        for row, points in above.items():
            kind = {"plan": "plan", "first": "first-wider"}.get(row.split()[0], "uniform")
            _, color, marker = SERIES["shuffled" if "shuffled" in row else kind]
            x, low, y, high = map(np.array, zip(*points, strict=True))
            beside = x * 1.03 ** list(above).index(row)  # so that intervals do not lie on each other
            axes.vlines(beside, low, high, color=colors[color], linewidth=1.5, alpha=0.6)
            axes.plot(beside, y, marker=marker, markersize=9, color=colors[color], linewidth=2, clip_on=False)
            put_label(
                axes, taken, row, (beside[-1], y[-1]), (12, 0), side="right", moves=(0, 14, -14, 28, -28, 42)
            )
    return to_svg(figure, theme="screen")


if __name__ == "__main__":
    main()
