"""Tables of the lines of `finetunes.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import MIB
from benchmarks.study.finetune_settings import read_settings
from benchmarks.study.intervals import difference, make_markdown_table

REFERENCE = "16-bit LoRA"
"""The row that others are compared with, if no other is asked for."""
Lines = dict[int, dict[str, Any]]
"""Of one row, by seed."""


def make_table(
    lines: Sequence[dict[str, Any]],
    task: str,
    model: str,
    reference: str = REFERENCE,
    others: Sequence[dict[str, Any]] = (),
) -> list[str]:
    """A Markdown table of a task and model: each row against that of a name with the same seeds and settings, or, if
    there is none, with the same but for those of plans. Rows of the usual settings come first.

    Args:
        others: lines that rows may be compared with, and that have no rows of their own.
    """
    usual, _ = read_settings()
    rows: dict[tuple[str, str, str], Lines] = {}
    references: dict[tuple[str, str], Lines] = {}
    for line in (*others, *lines):
        if (line.get("task"), line.get("model")) == (task, model):
            changed, of_plans = find_changes(line["settings"], usual)
            references.setdefault((line["row"], changed + of_plans), {})[line["seed"]] = line
    for line in lines:
        if (line.get("task"), line.get("model")) == (task, model):
            rows.setdefault((line["row"], *find_changes(line["settings"], usual)), {})[line["seed"]] = line

    def find_reference(changed: str, of_plans: str) -> Lines:
        same = references.get((reference, changed + of_plans))
        return references.get((reference, changed), {}) if same is None else same

    columns = (f"points against {reference}", "test loss", f"loss against {reference}")
    f1 = ("F1",) if any("f1" in line for some in rows.values() for line in some.values()) else ()
    return make_markdown_table(
        ("row", "MiB", "seeds", "right", *f1, *columns, "loss on other text"),
        (
            row_cells(row + changed + of_plans, some, find_reference(changed, of_plans), f1=bool(f1))
            for (row, changed, of_plans), some in sorted(
                rows.items(), key=lambda item: bool("".join(item[0][1:]))
            )
        ),
    )


def find_changes(settings: dict[str, Any], usual: dict[str, Any]) -> tuple[str, str]:
    """In words, the settings that are not the usual ones: those of all rows, and those of plans."""
    own = {name: value for name, value in settings.items() if name not in ("plans", "search")}
    pairs = [(own, usual), (settings.get("plans", {}), usual["plans"])]
    changed, of_plans = (
        "".join(f", {name} {value}" for name, value in given.items() if value != known.get(name))
        for given, known in pairs
    )
    return changed, of_plans


def fill_page(page: Path, name: str, table: Sequence[str]) -> None:
    """Put a table into a page, between `<!-- table: NAME -->` and the next `<!-- end -->`."""
    before, mark, rest = page.read_text().partition(f"<!-- table: {name} -->\n")
    if not mark:
        raise SystemExit(f"{page} has no line <!-- table: {name} -->")
    _, end, after = rest.partition("<!-- end -->")
    page.write_text("\n".join([before + mark, *table, "", end + after]))


def row_cells(name: str, lines: Lines, reference: Lines, *, f1: bool) -> list[str]:
    """The cells of a row; intervals hold 95% of resampled questions and seeds."""
    both = [seed for seed in lines if seed in reference]
    points = losses = ""
    if both and lines != reference:
        own, other = ([side[seed] for seed in both] for side in (lines, reference))
        if all(line["row_right"] for line in own):  # a setting may ask for no answers
            points = "{1:+.1f} [{0:+.1f}, {2:+.1f}]".format(
                *(100 * end for end in difference(read_right(own), read_right(other), relative=False))
            )
        losses = "{1:+.1%} [{0:+.1%}, {2:+.1%}]".format(*difference(read_losses(own), read_losses(other)))

    def mean(figure: str) -> float:
        return float(np.mean([line[figure] for line in lines.values()]))

    size = next(iter(lines.values()))["memory_bytes"] / MIB
    loss = f"{mean('test_loss'):.4f}"
    right = f"{mean('right'):.1%}" if all(line["row_right"] for line in lines.values()) else ""
    answers = [right, *([f"{mean('f1'):.3f}"] if f1 else [])]
    return [name, f"{size:.1f}", str(len(lines)), *answers, points, loss, losses, f"{mean('text_loss'):.1f}"]


def read_right(lines: Sequence[dict[str, Any]]) -> np.ndarray:
    """(seeds, questions): 1 where the answer is right."""
    return np.array([[int(c) for c in line["row_right"]] for line in lines], dtype=float)


def read_losses(lines: Sequence[dict[str, Any]]) -> np.ndarray:
    """(seeds, rows): summed loss of each test row, in nats."""
    return np.array([line["row_losses"].split() for line in lines], dtype=float)
