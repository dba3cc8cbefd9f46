"""Tasks of the benchmark by name: landscapes and logs; their budgets, and strategies by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from qra_search.app.bench import run as bench
from qra_search.app.bench.run import _run_cell_safely

TASK = "interaction-4-layer-measured"


def test_a_task_is_named_by_family_layers_granularity_and_prior() -> None:
    evaluator = bench.build_benchmark_task("misleading-6-module-shuffled", 3)
    assert len(evaluator.space) == 42
    assert evaluator.space.ranks == (4, 8, 16, 32), "rows of one task compare whatever a run begins with"
    assert evaluator.describe()["landscape"] == "misleading" and evaluator.describe()["seed"] == 3
    assert evaluator.sensitivities().source == "shuffled"


def test_a_task_is_as_noisy_as_its_name_says() -> None:
    measured, exact, noisy = (
        bench.build_benchmark_task(TASK + noise, 0) for noise in ("", "-noiseless", "-noise0.5")
    )
    plan = exact.space.uniform(3, 8)
    assert exact.evaluate(plan, seed=3).loss == exact.true_loss(plan) == measured.true_loss(plan)
    assert measured.evaluate(plan, seed=3).loss != measured.true_loss(plan)
    off = [noisy.evaluate(noisy.space.uniform(8, 32), seed=seed).loss for seed in range(200)]
    assert 0.4 < np.std(off) < 0.6


@pytest.mark.parametrize(
    "text",
    ["interaction", "interaction-x-layer-measured", "interaction-4-layer-measured-noise"],
)
def test_what_is_no_task_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unknown task .*: write FAMILY-LAYERS-GRANULARITY-SENSITIVITIES"):
        bench.build_benchmark_task(text, 0)


def test_the_budgets_are_uniform_3_bit_midway_and_uniform_4_bit() -> None:
    space = bench.build_benchmark_task(TASK, 0).space
    low, high = (space.memory_bytes(space.uniform(bits, 8)) for bits in (3, 4))
    assert bench.list_task_budgets(space) == (low, (low + high) // 2, high)


def test_options_of_a_strategy_are_written_behind_its_name() -> None:
    assert bench.parse_strategy("nsga2?population=8").population == 8
    with pytest.raises(ValueError, match="unknown option of strategy .random.: .depth.: there are none"):
        bench.parse_strategy("random?depth=3")
    with pytest.raises(
        ValueError, match="option of random takes a name and a value, such as population=8, not 'depth'"
    ):
        bench.parse_strategy("random?depth")


OWN = """
from __future__ import annotations
from dataclasses import dataclass
from qra_search import Strategy
from qra_search.strategies.simple import RandomStrategy

@dataclass
class Mine(RandomStrategy):
    depth: int = 2
"""


def test_a_strategy_may_be_a_class_of_a_file_named_as_a_module_of_others(tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text(OWN)
    strategy = bench.parse_strategy(f"{path}:Mine?depth=3")
    assert type(strategy).__name__ == "Mine" and strategy.depth == 3
    row = _run_cell_safely(TASK, f"{path}:Mine?depth=3", 0, 6.0)
    assert "error" not in row
    assert json.loads("[1]") == [1] and sys.modules["json"] is json


def test_cells_that_failed_are_run_again(tmp_path: Path) -> None:
    path, out, mended = tmp_path / "mine.py", tmp_path / "out", tmp_path / "mended"
    path.write_text(f"""{OWN}
    def propose(self, state, n):
        open({str(mended)!r}).close()
        return super().propose(state, n)
""")
    assert bench.run_benchmark([TASK], [f"{path}:Mine"], [0], 15, out, workers=1) == (1, 1)
    mended.touch()
    assert bench.run_benchmark([TASK], [f"{path}:Mine"], [0], 15, out, workers=1) == (1, 0)
    (row,) = bench.read_rows(out)
    assert "error" not in row
