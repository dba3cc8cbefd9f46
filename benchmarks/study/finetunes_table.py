"""Tables of the lines of `finetunes.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.common import MIB
from benchmarks.study.intervals import difference, table_of

REFERENCE = "16-bit LoRA"
HEAD = ("row", "MiB", "seeds", "right", "points beside 16-bit LoRA", "test loss", "loss beside 16-bit LoRA", "minutes")


def make_table(lines: Sequence[dict[str, Any]], task: str, model: str) -> list[str]:
    """A Markdown table of a task and model: each row beside 16-bit LoRA at the seeds that both have."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for line in lines:
        if (line["task"], line["model"]) == (task, model):
            rows.setdefault(line["row"], {})[line["seed"]] = line
    reference = rows.get(REFERENCE, {})
    return table_of(HEAD, (row_cells(name, some, reference) for name, some in rows.items()))


def row_cells(name: str, lines: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]]) -> list[str]:
    """The cells of a row."""
    some = list(lines.values())
    both = [seed for seed in lines if seed in reference]
    beside = ["", ""]
    if both and name != REFERENCE:
        mine, theirs = ([side[seed] for seed in both] for side in (lines, reference))
        points = difference(read_right(mine), read_right(theirs), relative=False)
        losses = difference(read_losses(mine), read_losses(theirs))
        beside = [
            "{1:+.1f} [{0:+.1f}, {2:+.1f}]".format(*(100 * x for x in points)),
            "{1:+.1%} [{0:+.1%}, {2:+.1%}]".format(*losses),
        ]
    return [
        name,
        f"{some[0]['memory_bytes'] / MIB:.1f}",
        str(len(some)),
        f"{np.mean([line['right'] for line in some]):.1%}",
        beside[0],
        f"{np.mean([line['test_loss'] for line in some]):.4f}",
        beside[1],
        f"{np.mean([line['seconds'] for line in some]) / 60:.0f}",
    ]


def read_right(lines: Sequence[dict[str, Any]]) -> np.ndarray:
    """(seeds, questions): 1 where the answer is right."""
    return np.array([[int(c) for c in line["row_right"]] for line in lines], dtype=float)


def read_losses(lines: Sequence[dict[str, Any]]) -> np.ndarray:
    """(seeds, rows): summed loss of each test row, in nats."""
    return np.array([line["row_losses"].split() for line in lines], dtype=float)
