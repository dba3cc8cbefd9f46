"""The rows of the long tunings: their plans, what is kept of them, and the table of their lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.common import read_lines
from benchmarks.study import finetunes, finetunes_table
from benchmarks.study.finetune_plans import widen_first_layers
from benchmarks.study.finetune_settings import RESULTS, read_settings
from qra_search.schemas import Group, Linear, Plan
from qra_search.space.space import SearchSpace

SHAPES = [(8, 64), (8, 64), (8, 64), (16, 64), (16, 64)]


def space(bits=(1, 2, 3), ranks=(2,)):
    groups = [
        Group(name=f"g{i}", linears=(Linear(name=f"l{i}", out_features=out, in_features=width),))
        for i, (out, width) in enumerate(SHAPES)
    ]
    return SearchSpace(groups=groups, bits=bits, ranks=ranks)


def test_the_first_layers_get_the_next_wider_bits_as_far_as_the_budget_goes():
    made = space()
    whole = made.memory_bytes(made.uniform(2, 2))
    assert widen_first_layers(made, whole, 2) == made.uniform(2, 2)
    assert widen_first_layers(made, whole + 2 * 8 * 64 // 8, 2) == Plan((3, 3, 2, 2, 2), (2,) * 5)
    assert widen_first_layers(made, whole - 1, 2).bits == (2, 2, 2, 2, 1)


def test_a_row_is_measured_once_and_its_checkpoints_go(tmp_path, monkeypatch):
    made = []

    def measure(options, row, seed, settings, folder):
        made.append((row.name, seed))
        (folder / "checkpoint").touch()
        return {"memory_bytes": 1, "test_loss": 1.0, "row_right": "10", "right": 0.5}

    class InProcess:
        def __init__(self, *arguments, **options): ...
        def __enter__(self):
            return self

        def __exit__(self, *error): ...
        def submit(self, function, *arguments):
            return type("Result", (), {"result": lambda self: function(*arguments)})()

    monkeypatch.setattr(finetunes, "measure_row", measure)
    monkeypatch.setattr(finetunes, "ProcessPoolExecutor", InProcess)
    lines, work = tmp_path / "lines.jsonl", tmp_path / "work"
    options = f"--data . --only ^QLoRA$ --seeds 0 1 --out {lines} --work {work}"
    monkeypatch.setattr("sys.argv", ["finetunes", *options.split()])
    finetunes.main()
    finetunes.main()
    assert made == [("QLoRA", 0), ("QLoRA", 1)]
    assert [line["seed"] for line in read_lines(lines)] == [0, 1]
    assert not any(work.iterdir())


def test_names_of_rows_are_unique_and_a_setting_can_be_changed():
    settings, rows = read_settings(["steps=60", "warmup=0.2"])
    assert (settings["steps"], settings["warmup"], settings["learning_rate"]) == (60, 0.2, 0.002)
    assert len({row.name for row in rows}) == len(rows)


def test_the_table_pairs_each_row_with_16_bit_lora_on_the_same_seeds():
    def line(row, seed, right, losses):
        own = {"row": row, "seed": seed, "row_right": right, "right": right.count("1") / len(right)}
        shared = {"task": "t", "model": "m", "settings": {"steps": 600}, "memory_bytes": 1 << 20}
        return own | shared | {"row_losses": losses, "test_loss": 1.0, "text_loss": 2.0, "seconds": 60.0}

    lines = [
        line("16-bit LoRA", 0, "1111", "1 1 1 1"),
        line("uniform", 0, "1010", "2 2 2 2"),
        line("uniform", 1, "0000", "9 9 9 9"),  # has no partner
    ]
    table = finetunes_table.make_table(lines, "t", "m")
    cells = [cell.strip() for cell in table[-1].strip("|").split("|")]
    assert cells[:4] == ["uniform", "1.0", "2", "25.0%"]
    assert cells[4].startswith("-50.0 [") and cells[6:] == ["+100.0% [+100.0%, +100.0%]", "2.0"]
    table = finetunes_table.make_table([{**line, "f1": 0.5} for line in lines], "t", "m")
    assert "| right | F1 | points" in table[0] and "| 25.0% | 0.500 | -50.0" in table[-1]
    others = lines[1]["settings"] | {"plans": {"embeddings": 1}}
    narrow = {**lines[1], "settings": others, "row_losses": "3 3 3 3"}
    table = finetunes_table.make_table([narrow], "t", "m", others=lines)
    assert len(table) == 3 and table[-1].startswith("| uniform, embeddings 1 |") and "+200.0%" in table[-1]
    table = finetunes_table.make_table([*lines[:2], narrow], "t", "m", "uniform")
    assert [row.startswith("| 16-bit LoRA") for row in table if "-50.0%" in row] == [True]


@pytest.mark.skipif(not RESULTS.exists(), reason="no line was committed yet")
def test_committed_lines_have_a_figure_for_each_test_question():
    questions = {"banking77": 3080, "restaurant8k": 3731}
    for line in read_lines(RESULTS):
        assert len(line["row_right"]) == questions[line["task"]], line["row"]
        assert line["right"] == pytest.approx(line["row_right"].count("1") / len(line["row_right"]), abs=1e-5)
        assert json.dumps(line["settings"])


@pytest.mark.skipif(not RESULTS.exists(), reason="no line was committed yet")
def test_the_pages_table_is_what_the_committed_lines_give(tmp_path):
    page = Path(__file__).parents[1] / "docs" / "study.md"
    if "<!-- table: banking77 smollm2 -->" not in page.read_text():
        pytest.skip("the page has no such table yet")
    again = tmp_path / "study.md"
    again.write_text(page.read_text())
    finetunes_table.fill_page(
        again, "banking77 smollm2", finetunes_table.make_table(read_lines(RESULTS), "banking77", "smollm2")
    )
    assert again.read_text() == page.read_text()
