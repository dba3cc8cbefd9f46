"""What was tuned or searched is neither lost nor taken for something else, whatever the user does with its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_runner import LANDSCAPE, Qra

from qra_search.report.finding import finding
from qra_search.runs.comparison import read_test
from qra_search.runs.folder import RunFolder
from qra_search.space.serialization import plan_from_dict, plan_to_dict
from qra_search.space.space import Plan

pytestmark = pytest.mark.usefixtures("tuner")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run of `tuned` waits once it was made."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def tuned(qra: Qra, tmp_path: Path, searched: Path, kept: Path, tuner: dict[str, Any]) -> RunFolder:
    """A run whose plan was tuned, beside all uniform plans that fit."""
    if any(kept.iterdir()):
        return RunFolder(shutil.copytree(kept / "a", searched, dirs_exist_ok=True))
    mixed = tmp_path / "mixed.json"
    assert qra("plans", "edit", searched, "--set", "*=3:8", "--set", "layers.0=2:8", "--out", mixed).status == 0
    assert qra("finetune", searched, "--plan", mixed, "--against", "all").status == 0
    run = RunFolder(searched)
    (run.adapter / "weights").write_text("of the first plan")
    shutil.copytree(run.path, kept / "a")
    return run


def edit(run: RunFolder, choice: str) -> Plan:
    """Write a plan of this choice everywhere into the run's plan.json, as an editor would."""
    space = run.result().space
    plan = space.uniform(*map(int, choice.split(":")))
    assert plan is not None
    run.plan_file.write_text(json.dumps(plan_to_dict(space, plan)))
    return plan


def test_the_plan_file_of_what_was_tuned_is_not_edited_in_place(qra: Qra, tuned: RunFolder, tmp_path: Path) -> None:
    before = tuned.plan_file.read_text()
    done = qra("plans", "edit", tuned.path, "--set", "*=2:4", "--out", tuned.plan_file)
    assert done.status == 2 and "says which plan the adapter beside it was tuned for" in done.err
    assert tuned.plan_file.read_text() == before
    assert qra("plans", "edit", tuned.path, "--set", "*=2:4", "--out", tmp_path / "plan.json").status == 0


def test_an_adapter_is_set_aside_though_the_plan_file_beside_it_was_changed(qra: Qra, tuned: RunFolder) -> None:
    plan = edit(tuned, "2:4")
    assert qra("finetune", tuned.path).status == 0
    assert (tuned.path / "earlier-1" / "adapter" / "weights").read_text() == "of the first plan"
    assert not (tuned.adapter / "weights").exists() and tuned.plan() == plan


def test_a_search_sets_aside_what_was_tuned_if_the_plan_file_cannot_be_read(qra: Qra, tuned: RunFolder) -> None:
    tuned.plan_file.write_text('{"format": "qra-plan/1", "groups"')
    assert qra("search", tuned.path, "--evaluations", "14").status == 0
    assert (tuned.path / "earlier-1" / "adapter" / "weights").is_file()
    assert plan_from_dict(tuned.result().space, json.loads(tuned.plan_file.read_text())) == tuned.result().chosen()


def test_uniform_plans_tuned_before_stay_in_the_comparison(qra: Qra, tuned: RunFolder, tuner: dict[str, Any]) -> None:
    first, calls = json.loads(tuned.test_file.read_text())["tuned"], len(tuner["tuned"])
    assert len(first) > 2
    assert qra("finetune", tuned.path, "--seeds", "2").status == 0
    assert len(tuner["tuned"]) == calls + 2  # the plan and its best rival, with the second seed
    entries = json.loads(tuned.test_file.read_text())["tuned"]
    assert len(entries) == len(first) + 2 and all(entry in entries for entry in first)
    with_two = [t for t in read_test(tuned.test()) if len(t.losses) == 2]
    found = finding(tuned.result(), read_test(tuned.test()))
    assert len(with_two) == 2 and found is not None and found.rival in [t.plan for t in with_two]
    assert qra("finetune", tuned.path, "--against", "all").status == 0
    assert len(tuner["tuned"]) == calls + 2


def test_planning_again_keeps_the_length_of_the_search(qra: Qra, tmp_path: Path) -> None:
    asked = ("plan", *LANDSCAPE, "--memory", "uniform3r8", "--out", tmp_path / "a")
    assert qra(*asked).status == 0
    assert qra("search", tmp_path / "a", "--evaluations", "9").status == 0
    assert qra(*asked).status == 0
    assert RunFolder(tmp_path / "a").config().search.evaluations == 9
    assert qra(*asked, "--set", "search.evaluations=11").status == 0
    assert RunFolder(tmp_path / "a").config().search.evaluations == 11


def test_what_is_of_the_searchs_evaluations_is_refused_for_a_full_tuning(
    qra: Qra, tuned: RunFolder, tuner: dict[str, Any]
) -> None:
    built = tuner["built"]
    done = qra("finetune", tuned.path, "--set", "evaluation.steps=200")
    assert done.status == 2 and "how long a plan is fine-tuned, finetune.steps says" in done.err
    assert tuner["built"] == built


def test_a_record_is_exported_for_the_engine_of_its_run(qra: Qra, searched: Path) -> None:
    run = RunFolder(searched)
    record = run.record(90 << 20)
    assert record.engine() is None
    run.config_file.write_text("evaluator: landscape\nengine: llama.cpp\n")
    assert record.engine() == run.engine() == "llama.cpp"


def test_commands_that_are_printed_name_the_folder_whatever_it_is_called(qra: Qra, tmp_path: Path) -> None:
    run = tmp_path / "m [v2]"
    done = qra.search(run)
    assert f"qra show '{run}'" in done.out and f"Report: {run}/report.html" in done.out
    assert f"Report: {run}" in qra("report", run).out
    assert "m [v2]" in qra("runs", tmp_path).out


def test_a_tuning_that_failed_has_no_loss_in_json(qra: Qra, tuned: RunFolder, tuner: dict[str, Any]) -> None:
    edit(tuned, "3:8")
    tuner["failing"] = True
    assert qra("finetune", tuned.path).status == 1
    (row,) = qra("runs", tuned.path.parent, "--json").json
    assert row["loss"] is None and row["gain"] is None


def test_show_says_what_was_found_within_the_budget_that_is_asked_for(qra: Qra, tuned: RunFolder) -> None:
    size = tuned.result().space.memory_bytes(tuned.result().space.uniform(2, 8))
    shown = qra("show", tuned.path, "--memory", str(size))
    assert (
        shown.status == 0
        and "test loss" not in shown.out.lower()
        and f"{size / 2**20:.1f} MiB" in shown.out.splitlines()[0]
    )
    first = qra("show", tuned.path).out.splitlines()[0]
    assert "test loss" in first and qra("show", tuned.path, "--memory", "uniform3r8").out.startswith(first)


@pytest.mark.parametrize(("name", "content"), [
    ("result.json", "{"), ("plan.json", "{"), ("plan.json", "[]"), ("test.json", "{"), ("test.json", "[]"),
    ("test.json", '{"format": "qra-test/1"}'),
])  # fmt: skip
def test_a_damaged_file_is_bad_input_in_a_line_that_names_it(
    qra: Qra, tuned: RunFolder, name: str, content: str
) -> None:
    assert qra("doctor", tuned.path).status == 0
    (tuned.path / name).write_text(content)
    for command in ("show", "report"):
        done = qra(command, tuned.path)
        assert done.status == 2 and name in done.err and done.err.count("\n") == 1, command
    report = qra("doctor", tuned.path, "--json")
    assert report.status == 1 and [row["what"] for row in report.json if row["level"] == "fault"] == [name]


@pytest.mark.parametrize(("change", "message"), [
    (lambda groups: groups[0].pop("bits"), "groups are not a list of mappings"),
    (lambda groups: groups.append(dict(groups[0])), "twice: leave one out"),
])  # fmt: skip
def test_plans_that_are_not_whole_are_refused_in_a_line(
    qra: Qra, tuned: RunFolder, tmp_path: Path, change: Any, message: str
) -> None:
    data = json.loads(tuned.plan_file.read_text())
    change(data["groups"])
    (tmp_path / "p.json").write_text(json.dumps(data))
    for command in (
        ("diff", tuned.path, tmp_path / "p.json"),
        ("edit", tmp_path / "p.json", "--run", tuned.path, "--set", "*=2:4", "--out", tmp_path / "out.json"),
    ):
        done = qra("plans", *command)
        assert done.status == 2 and message in done.err, done.err


def test_bytes_of_a_plan_in_a_run_are_counted_and_not_read(qra: Qra, tmp_path: Path, searched: Path) -> None:
    run = RunFolder(searched)
    space, data = run.result().space, json.loads(run.plan_file.read_text())
    data["groups"][0]["bits"] = 8
    run.plan_file.write_text(json.dumps(data))
    loose = tmp_path / "loose.json"
    del data["memory_bytes"]
    loose.write_text(json.dumps(data))
    found = qra("plans", "diff", run.plan_file, loose, "--json").json
    assert found["first_bytes"] == space.memory_bytes(run.plan()) and found["second_bytes"] is None
    assert "and unknown bytes" in qra("plans", "diff", run.plan_file, loose).out


def test_a_log_that_lost_trials_is_a_fault(qra: Qra, tuned: RunFolder) -> None:
    counted = len(tuned.result().trials)
    lines = tuned.log_file.read_text().splitlines(keepends=True)
    tuned.log_file.write_text("".join(line for line in lines if '"trial":' not in line))
    report = qra("doctor", tuned.path, "--json")
    (fault,) = [row for row in report.json if row["level"] == "fault"]
    assert report.status == 1 and fault["what"] == "result.json" and f"counts {counted} trials" in fault["advice"]
