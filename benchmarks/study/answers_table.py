"""The tables of `answers.jsonl`: right answers at equal bytes; run by itself, it puts them into docs/study.md.

python -m benchmarks.study.answers_table
"""

from __future__ import annotations

from typing import Any

from benchmarks.common import MIB
from benchmarks.study.intervals import change, difference, mean_loss, rows_of, table_of

FILE = "answers.jsonl"
UNTUNED, QLORA, WIDE = "untuned", "QLoRA", "16-bit LoRA"
PLAN = "plan within "


def table(lines: list[dict[str, Any]], model: str) -> list[str]:
    """Every row of a model beside QLoRA, most bytes first: same test rows, intervals of 95% over rows and seeds."""
    lines = [d for d in lines if d["model"] == model]
    rival = {d["seed"]: d for d in lines if d["row"] == QLORA}
    body = []
    names: dict[Any, dict[str, None]] = {}  # one plan may be the best within several shares
    for d in lines:
        names.setdefault(d["choices"] if d["row"].startswith(PLAN) else d["row"], {})[d["row"]] = None
    for row, *others_within in names.values():
        some = [d for d in lines if d["row"] == row and d["seed"] in rival]
        others = [rival[d["seed"]] for d in some]
        if not some:
            continue
        low, mean, high = (
            f"{100 * x:+.1f}"
            for x in difference(rows_of(some, "row_right"), rows_of(others, "row_right"), relative=False)
        )
        right = rows_of(some, "row_right").mean()
        size, share = some[0]["memory_bytes"], some[0]["memory_bytes"] / others[0]["memory_bytes"]
        same = row == QLORA
        name = ", ".join([row, *(other.removeprefix(PLAN) for other in others_within)])
        cells = [name, f"{size / MIB:.1f}", f"{share:.0%}", " ".join(map(str, some[0].get("embeddings") or [16]))]
        cells += [f"{mean_loss(some):.4f}", "–" if same else change(some, others)]
        cells += [f"{right:.1%}", "–" if same else f"{mean} [{low}, {high}]"]
        cells += [f"{some[0]['peak_bytes'] / (1 << 30):.1f}" if row != UNTUNED else "–"]
        minutes = sum(d["processor_seconds"] - d.get("prepared", 0) for d in some) / len(some) / 60
        body.append((size, [*cells, f"{minutes:.1f}"]))
    head = ["row", "MiB", "of QLoRA's", "embeddings", "test loss", "against QLoRA", "right", "against QLoRA, points"]
    in_order = [cells for _, cells in sorted(body, key=lambda row: -row[0])]
    return table_of([*head, "peak of tuning, GiB", "processor minutes"], in_order)
