"""What is said of a run's data: rows asked for and had, too few of them, and rows that are cut."""

from __future__ import annotations

from collections.abc import Mapping

from qra_search.config import RunConfig
from qra_search.evaluation.evaluator import Evaluator, RowCount
from qra_search.study.listener import Listener

FEW = 32
"""Rows below which a loss says little of other rows."""
ROLES = {"calibration": "to tune on", "validation": "for validation", "test": "for test"}


def rows_text(counts: Mapping[str, RowCount]) -> list[str]:
    """Lines on the rows: how many there are, then warnings."""
    if not counts:
        return []
    lines = [", ".join(_count_text(count, ROLES.get(name, name)) for name, count in counts.items())]
    few = [f"{count.had} {ROLES[name]}" for name, count in counts.items() if name in ROLES and count.had < FEW]
    if few:
        lines.append(f"warning: {' and '.join(few)}: fewer than {FEW} rows say little of others, give more data")
    cut = sum(count.cut for count in counts.values())
    if cut:
        had, longest = sum(count.had for count in counts.values()), max(count.longest for count in counts.values())
        lines.append(
            f"{cut} of {had} rows are cut to training.max_length, the longest has {longest} tokens: "
            f"--set training.max_length={longest} keeps them whole"
        )
    return lines


def say_rows(evaluator: Evaluator, listener: Listener) -> None:
    """Say how many rows there are if they are fewer than asked for or are cut; nothing if all is as asked."""
    counts = evaluator.row_counts()
    lines = rows_text(counts)
    if len(lines) > 1 or any(count.had < count.asked for count in counts.values()):
        for line in lines:
            listener.say(line if line.startswith("warning") else f"rows: {line}")


def rows_of_test(evaluator: Evaluator, config: RunConfig) -> int:
    """The rows that a comparison on test data is truly of."""
    counts = evaluator.row_counts()
    return counts["test"].had if "test" in counts else config.finetune.test_rows


def _count_text(count: RowCount, role: str) -> str:
    asked = f" ({count.asked} asked for)" if count.had < count.asked else ""
    return f"{count.had} {role}{asked}"
