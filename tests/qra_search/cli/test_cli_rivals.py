"""Which rivals `qra finetune` tunes beside a plan that was only foretold, with an evaluator that tunes at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Qra

from qra_search import Plan
from qra_search.runs.folder import RunFolder
from qra_search.space.budgets import resolve_budgets
from qra_search.space.memory import format_bytes

pytestmark = pytest.mark.usefixtures("tuner")


@pytest.fixture
def planned(qra: Qra, tmp_path: Path) -> Path:
    """A run that `qra plan` left, within two budgets."""
    out = tmp_path / "p"
    budgets = ("--memory", "uniform3r8", "--memory", "uniform4r8")
    modules = ("--evaluator", "landscape", "--set", "options.layers=4")
    assert qra("plan", *modules, *budgets, "--out", out).status == 0
    return out


def test_a_plan_is_tuned_beside_the_uniform_plan_of_the_least_predicted_loss(
    qra: Qra, planned: Path, tuner: dict[str, Any]
) -> None:
    allocation = RunFolder(planned).result().allocation()
    assert allocation is not None and allocation.best_uniform is not None
    assert qra("finetune", planned).status == 0
    assert [plan for plan, _, _ in tuner["tuned"]] == [allocation.plan, allocation.best_uniform.plan]
    assert allocation.best_uniform.gain == min(u.gain for u in allocation.uniform)


def test_every_budget_has_its_own_rival_and_its_own_record(qra: Qra, planned: Path, tuner: dict[str, Any]) -> None:
    assert qra("finetune", planned).status == 0
    run, known = RunFolder(planned), RunFolder(planned).test_file.read_bytes()
    (small,) = resolve_budgets(run.result().space, "uniform3r8")
    tuner["tuned"].clear()
    done = qra("finetune", planned, "--memory", "uniform3r8")
    assert done.status == 0, done.err
    sizes = [run.result().space.memory_bytes(plan) for plan, _, _ in tuner["tuned"]]
    assert len(sizes) == 2 and max(sizes) <= small
    assert f"within {format_bytes(small)}" in done.out
    record = run.record(small)
    assert json.loads(record.test_file.read_text())["limit"] == small and record.adapter.is_dir()
    assert run.test_file.read_bytes() == known
    assert f"qra export {record.path}\n" in done.out
    assert [r.path for r in run.records()] == [record.path]
    assert f"Within {format_bytes(small)}" in run.report_file.read_text().replace("\N{NO-BREAK SPACE}", " ")


def test_a_uniform_plan_is_named_by_its_bits_and_rank_and_its_command_follows_a_defeat(
    qra: Qra, planned: Path, tuner: dict[str, Any]
) -> None:
    lost = qra("finetune", planned, "--plan", "uniform2r4")
    assert lost.status == 0 and tuner["tuned"][0][0] == Plan((2,) * 28, (4,) * 28)
    assert "No plan found" in lost.out and "it may be chance" in " ".join(lost.out.split())
    rival = tuner["tuned"][1][0]
    command = f"qra finetune {planned} --plan uniform{rival.bits[0]}r{rival.ranks[0]}"
    assert command in lost.out
    tuner["tuned"].clear()
    assert qra(*command.split()[1:]).status == 0
    assert [plan for plan, _, _ in tuner["tuned"]] == [rival]  # its loss was known, but nothing of it was kept
