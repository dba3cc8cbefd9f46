"""`qra demo`, with an evaluator that tunes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_runner import Qra

from qra_search.app.baselines import shuffle_plan
from qra_search.app.folder import RunFolder
from qra_search.space.budgets import resolve_budgets

FIELDS = ("options.layers=4", "space.granularity=layer", "space.bits=[1, 2]", "search.memory=2.35bpw")
SMALL = tuple(word for field in FIELDS for word in ("--set", field))

pytestmark = pytest.mark.usefixtures("tuner")


def test_the_demo_plans_and_compares_with_the_best_uniform_plan_that_fits_and_the_plan_shuffled(
    qra: Qra, tmp_path: Path, tuner: dict[str, Any]
) -> None:
    done = qra("demo", "--out", tmp_path / "d", *SMALL)
    assert done.status == 0, done.err
    run = RunFolder(tmp_path / "d")
    result = run.read().result
    assert result.memory_budgets == resolve_budgets(result.space, "2.35bpw")
    allocation = result.allocation()
    assert allocation is not None and allocation.best_uniform is not None and result.trials == ()
    sixteen = result.space.unquantized.uniform(16, result.space.ranks[-1])
    shuffled = shuffle_plan(result.space, allocation.plan)
    others = [allocation.best_uniform.plan, sixteen, shuffled]
    assert [plan for plan, _, _ in tuner["tuned"]] == [allocation.plan, *others]
    assert "shuffled: " in done.out
    assert "16-bit LoRA, rank" in done.out and tuner["built"] == 1
    assert str(run.report_file) in done.out and f"qra search {run.path} --evaluations" in done.out
    again = qra("demo", "--out", tmp_path / "d", *SMALL, "--json")
    assert again.status == 0, again.err
    roles = {tuned["role"] for tuned in again.json["comparison"]["tunings"]}
    assert roles == {"plan", "uniform", "shuffled", "16-bit"}
    assert run.read().result.trials == () and len(tuner["tuned"]) == 4, "nothing is tuned twice"
