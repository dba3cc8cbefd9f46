"""The design of the real tunings: its plans are of the space, and its recorded rows its beginning."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks.common import read_lines
from benchmarks.tunings import BITS, BLOCK, FOLDER, RANKS, RATES, TASKS, draw_design, make_plan
from qra_search.schemas import Group, Linear
from qra_search.space.memory import GroupwiseFormat, Level
from qra_search.space.space import SearchSpace

DESIGN = read_lines(FOLDER / "design.jsonl")


def make_small_space() -> SearchSpace:
    """Six linears of one shape and a table, with a half bit between the whole ones."""
    levels = [
        Level(b if b != 1.5 else "half-1.5", b, "", GroupwiseFormat(int(2 * b), metadata_bits=0))
        for b in BITS
    ]
    groups = [
        Group(name=f"layers.{i}.up", linears=(Linear(name=f"{i}", out_features=64, in_features=64),))
        for i in range(6)
    ]
    table = Linear(name="table", out_features=64, in_features=64)
    groups.append(Group(name="table", linears=(table,), ranks=(0,), is_embedding=True))
    return SearchSpace(groups=groups, bits=levels, ranks=(0, *RANKS))


@pytest.mark.parametrize("line", DESIGN[:24], ids=str)
def test_a_line_makes_a_plan_of_the_space(line: dict) -> None:
    space = make_small_space()
    rng = np.random.default_rng(0)
    table = np.sort(rng.random((len(space), len(BITS), 1)), axis=1)[:, ::-1] + np.zeros(
        (1, 1, len(space.ranks))
    )
    plan = make_plan(space, table, line)
    assert space.contains(plan)
    if line["kind"] == "uniform":
        assert plan == space.uniform(line["bits"], line["rank"])
    else:
        base = make_plan(space, table, line | {"kind": "sensitivities"})
        one, three = (space.memory_bytes(space.uniform(bits, line["rank"])) for bits in (1, 3))
        assert one <= space.memory_bytes(base) <= one + (three - one) * (line["budget_bits"] - 1) / 2
        code, other = space.encode_many([plan, base])
        changed = int((code != other).any(0).sum())
        assert changed <= (round(line["changed"] * 6) if line["kind"] == "changed" else 0)


@pytest.mark.parametrize("task", TASKS)
def test_the_committed_design_is_the_one_that_is_drawn(task: str) -> None:
    assert [line for line in DESIGN if line["task"] == task] == draw_design(task)


def test_it_has_what_the_table_promises() -> None:
    assert len(DESIGN) >= 400
    assert set(RATES) == {line["learning_rate"] for line in DESIGN}
    assert sum(line["kind"] != "uniform" for line in DESIGN) >= 60
    again = Counter(str({**line, "seed": None}) for line in DESIGN)
    assert sum(count > 1 for count in again.values()) >= len(DESIGN) // (BLOCK + 1)


@pytest.mark.parametrize("task", TASKS)
def test_the_recorded_rows_are_the_first_lines_of_the_design(task: str) -> None:
    rows = [row for row in read_lines(FOLDER / "tunings.jsonl") if row["task"] == task]
    lines = [line for line in DESIGN if line["task"] == task]
    assert all(line.items() <= row.items() for line, row in zip(lines, rows, strict=False)), (
        "none is left out"
    )
    assert all(row.get("failed") or row["test_loss"] > 0 for row in rows)
