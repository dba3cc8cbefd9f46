"""`qra finetune`, with an evaluator that tunes at once: what is missing is tuned; of failures a line says so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cli_runner import MIXED, Qra, read_records, write_plan

from qra_search import Plan, open_run
from qra_search.app.baselines import list_rungs
from qra_search.app.folder import RunFolder
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


def test_a_plan_and_the_best_uniform_plan_are_tuned_and_compared(
    qra: Qra, searched: Path, mixed: tuple[str | Path, ...]
) -> None:
    done = qra(*mixed)
    assert done.status == 0, done.err
    run = RunFolder(searched)
    comparison = run.read().comparison()
    assert comparison is not None and comparison.chosen.plan == MIXED
    assert [t.role for t in comparison.tunings] == ["plan", "uniform"]
    assert all(run.tuning(record.id).adapter.is_dir() for record in read_records(searched))
    assert "whose test loss is" in done.out and "exact match" in done.out and "25.0%" in done.out
    assert "estimated time: " in done.err
    assert "On test data" in run.report_file.read_text()


def test_the_baseline_of_a_plan_without_a_search_is_that_of_least_predicted_loss(
    qra: Qra, planned: Path, tuner: dict[str, Any]
) -> None:
    allocation = RunFolder(planned).read().result.allocation()
    assert allocation is not None and allocation.best_uniform is not None
    assert qra("finetune", planned).status == 0
    assert [plan for plan, _, _ in tuner["tuned"]] == [allocation.plan, allocation.best_uniform.plan]
    assert allocation.best_uniform.gain == min(u.gain for u in allocation.uniform)


@pytest.mark.parametrize(
    ("against", "roles"),
    [
        ("all", {"uniform", "shuffled"}),
        ("shuffled", {"shuffled"}),
        ("none", set()),
        ("best", {"uniform"}),
    ],
)
def test_what_a_plan_is_tuned_against_is_an_option(
    qra: Qra,
    searched: Path,
    tuner: dict[str, Any],
    mixed: tuple[str | Path, ...],
    against: str,
    roles: set[str],
) -> None:
    found = qra(*mixed, "--against", against, "--with-16-bit", "--json").json["tunings"]
    assert {t["role"] for t in found} == {"plan", "16-bit"} | roles
    result = RunFolder(searched).read().result
    fitting = [
        p for p in result.space.uniform_plans() if result.space.memory_bytes(p) <= result.memory_budgets[0]
    ]
    assert len(found) == 2 + {"all": len(fitting) + 1, "none": 0}.get(against, 1)


def test_nothing_is_tuned_twice_and_other_plans_seeds_and_settings_add_records(
    qra: Qra, searched: Path, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    assert qra(*mixed, "--with-16-bit").status == 0
    first = {file: file.read_bytes() for file in searched.glob("tunings/*/record.json")}
    other = write_plan(searched, Plan((3, 2, 3, 3), (8,) * 4), "other.json")
    for words, jobs in (
        (mixed, 0),
        ((*mixed, "--with-16-bit"), 0),
        (("finetune", searched, "--plan", other, "--with-16-bit"), 1),
        ((*mixed, "--seeds", 2), 2),
        ((*mixed, "--steps", 9), 2),
        ((*mixed, "--set", "finetune.steps=9"), 0),
        ((*mixed, "--set", "training.warmup=0.2"), 2),
        ((*mixed, "--set", "finetune.checkpoint_minutes=7"), 0),
    ):
        tuner["tuned"].clear()
        assert qra(*words).status == 0
        assert len(tuner["tuned"]) == jobs, words
    tuner["data"] = "other rows"
    assert qra(*mixed).status == 0 and len(tuner["tuned"]) == 2
    assert first and all(file.read_bytes() == content for file, content in first.items())
    assert (
        len(read_records(searched)) == len(first) + 9 == len({record.id for record in read_records(searched)})
    )


def test_every_budget_has_its_own_plan_and_baseline(qra: Qra, planned: Path, tuner: dict[str, Any]) -> None:
    assert qra("finetune", planned).status == 0
    run = RunFolder(planned)
    small = resolve_budgets(run.read().result.space, "uniform3r8")[0]
    tuner["tuned"].clear()
    done = qra("finetune", planned, "--memory", "uniform3r8")
    assert done.status == 0, done.err
    sizes = [run.read().result.space.memory_bytes(plan) for plan, _, _ in tuner["tuned"]]
    assert len(sizes) == 2 and max(sizes) <= small
    assert f"within {format_bytes(small)}" in done.out
    comparison = run.read().comparison()
    assert (
        comparison is not None and comparison.chosen.plan == tuner["tuned"][0][0] != run.read().require_plan()
    )
    assert comparison.budget_bytes == small, "what was tuned last, as it took as many steps"


def test_a_uniform_plan_is_named_by_its_bits_and_rank_and_exported_after_a_defeat(
    qra: Qra, planned: Path, tuner: dict[str, Any]
) -> None:
    lost = qra("finetune", planned, "--plan", "uniform2r4")
    assert lost.status == 0 and tuner["tuned"][0][0] == Plan((2,) * 28, (4,) * 28)
    said = " ".join(lost.out.split())
    assert "None of the plans found" in said and "it may be chance" in said
    assert (
        "Deploy uniform 2 bits, rank 4 (4.5 MiB): 25.0% right, uniform 4 bits, rank 8 25.0% (the same)"
        in (" ".join(lost.out.split()))
    )
    found = RunFolder(planned).read().find_tuning("uniform").record()
    assert found is not None and found.plan == tuner["tuned"][1][0]


def test_tunings_are_found_by_role_and_by_id(qra: Qra, searched: Path, mixed: tuple[str | Path, ...]) -> None:
    refused = qra("export", searched)
    assert refused.status == 2 and "has no selected tuning (tunings: none)" in refused.err
    assert qra(*mixed, "--against", "none", "--with-16-bit").status == 0
    run = RunFolder(searched)
    for record in read_records(searched):
        assert run.read().find_tuning(record.id[:6]).id == record.id
    assert {name: run.read().find_tuning(name).record().plan for name in (None, "16-bit")} == {  # type: ignore[union-attr]
        None: MIXED,
        "16-bit": Plan((16,) * 4, (32,) * 4),
    }
    refused = qra("show", searched, "--tuning", "16-bit")
    assert refused.status == 2 and "which is no plan of this run" in refused.err
    refused = qra("export", searched, "--tuning", "shuffled")
    assert refused.status == 2 and "no tuning 'shuffled'" in refused.err
    assert f"run `qra finetune {searched} --against shuffled`" in refused.err


def test_adapters_of_all_plans_are_kept_and_one_without_files_is_not_exported(
    qra: Qra, searched: Path, mixed: tuple[str | Path, ...]
) -> None:
    assert qra(*mixed, "--with-16-bit").status == 0
    records = read_records(searched)
    assert len(records) == 3 and all(RunFolder(searched).tuning(r.id).adapter.is_dir() for r in records)
    refused = qra("export", searched, "--tuning", "uniform")
    assert refused.status == 2 and "has no adapter: delete this folder and run `qra finetune`" in refused.err


def test_two_processes_tune_different_records_of_one_run(
    qra: Qra,
    searched: Path,
    tuner: dict[str, Any],
    mixed: tuple[str | Path, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What another process is at is left for the end, and then found done."""
    assert qra(*mixed, "--against", "none").status == 0
    (record,) = read_records(searched)
    own = RunFolder(searched).tuning(record.id)
    content = own.record_file.read_bytes()
    own.record_file.unlink()
    tuner["tuned"].clear()
    with own.lock():
        from qra_search.app.tuning_folder import TuningFolder

        lock = TuningFolder.lock

        def finish_other(self: TuningFolder, *, wait: bool = False) -> Any:
            if wait:
                own.record_file.write_bytes(content)
            return lock(self)

        monkeypatch.setattr(TuningFolder, "lock", finish_other)
        done = qra(*mixed)
    said = " ".join(done.err.split())
    assert done.status == 0
    assert f"tuning {record.id} is left for the end, because process {os.getpid()} on " in said
    assert f"waiting for tuning {record.id}, because process {os.getpid()} on " in said
    assert len(tuner["tuned"]) == 1 and tuner["tuned"][0][0] != MIXED
    assert own.record_file.read_bytes() == content


def test_several_seeds_give_an_interval(qra: Qra, searched: Path, tuner: dict[str, Any]) -> None:
    shown = qra("finetune", searched, "--against", "none", "--seeds", 3)
    assert shown.status == 0 and "±" in shown.out
    assert [seed for _, seed, _ in tuner["tuned"]] == [0, 1, 2]


def test_a_function_hears_of_every_step(qra: Qra, searched: Path, mixed: tuple[str | Path, ...]) -> None:
    heard: list[Any] = []
    with open_run(searched) as run:
        run.finetune(mixed[-1], seeds=2, on_step=lambda *told: heard.append(told), progress=False)
    for record in read_records(searched):
        own = [(step, figures["loss"]) for id, step, figures in heard if id == record.id]
        assert own == [(1, 2.5), (2, 2.0)]


def test_commands_that_are_printed_name_the_folder_whatever_it_is_called(qra: Qra, tmp_path: Path) -> None:
    run = tmp_path / "m [v2]"
    done = qra.search(run)
    assert f"qra show '{run}'" in done.out and f"Report: {run}/report.html" in done.out
    assert f"Report: {run}" in qra("report", run).out


def test_a_ladder_ends_when_the_smallest_plan_that_is_as_good_is_known(
    qra: Qra, planned: Path, tuner: dict[str, Any]
) -> None:
    """Every answer is right as often, so that the smallest rung is as good as the best."""
    done = qra("finetune", planned, "--against", "ladder")
    space = RunFolder(planned).read().result.space
    sizes = [space.memory_bytes(plan) for plan, *_ in tuner["tuned"]]
    assert done.status == 0 and max(sizes) in sizes[:2] and min(sizes) == sizes[-1]
    assert 3 <= len(sizes) <= 5 < len(
        list_rungs(space, tuner["tuned"][0][0], RunFolder(planned).read().result)
    ) and len(set(sizes)) == len(sizes)
    smallest = RunFolder(planned).read().find_tuning().record()
    assert smallest is not None and smallest.memory_bytes == min(sizes)
    assert (
        done.out.count("tuning the next plan of the ladder") == 0
        and done.err.count("tuning the next plan of the ladder") == len(sizes) - 1
    )
    count = len(tuner["tuned"])
    assert qra("finetune", planned, "--against", "ladder").status == 0 and len(tuner["tuned"]) == count
    tuner["tuned"].clear()
    assert qra("finetune", planned, "--against", "ladder", "--memory", "uniform3r8", "--seeds", 2).status == 0
    assert all(space.memory_bytes(plan) <= max(sizes) for plan, *_ in tuner["tuned"])
    assert {seed for _, seed, _ in tuner["tuned"]} == {0, 1}


def test_rungs_that_fail_are_left_out(qra: Qra, planned: Path, tuner: dict[str, Any]) -> None:
    tuner["failing"] = True
    done = qra("finetune", planned, "--against", "ladder")
    assert done.status == 0 and "a baseline could not be tuned" in done.err


def test_a_baseline_out_of_memory_leaves_no_record_and_one_that_diverged_does(
    qra: Qra, searched: Path, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    tuner["failing"] = True
    done = qra(*mixed)
    assert done.status == 0 and "has no record: out of memory: 3 GiB more are needed" in " ".join(
        done.err.split()
    )
    assert "no uniform plan was tuned with the same settings" in " ".join(done.out.split())
    assert len(read_records(searched)) == 1
    tuner |= {"failing": None, "diverging": True}
    assert "no uniform plan was tuned with the same settings" in " ".join(qra(*mixed).out.split())
    assert [record.failed for record in read_records(searched)] == ["", "diverged: training loss is nan"]
    count = len(tuner["tuned"])
    assert "diverged" in qra(*mixed).out and len(tuner["tuned"]) == count
    assert "diverged" in RunFolder(searched).report_file.read_text()


def test_the_plan_failing_is_an_error_and_tried_again_unless_it_diverged(
    qra: Qra, searched: Path, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    tuner["failing"] = False
    done = qra(*mixed)
    assert done.status == 1 and not read_records(searched)
    assert "the plan could not be tuned with seed 0: out of memory: 3 GiB more are needed" in done.err
    tuner |= {"failing": None, "diverging": True}
    for _ in range(2):
        done = qra("finetune", searched, "--plan", "uniform2r4")
        assert done.status == 1 and "diverged: training loss is nan" in done.err
        assert qra("show", searched).status == qra("report", searched).status == 0
    assert len(tuner["tuned"]) == 2


def test_ctrl_c_keeps_what_was_tuned_and_says_so(
    qra: Qra, searched: Path, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    tuner["stops_after"] = 1
    stopped = qra(*mixed)
    assert stopped.status == 130 and "Give the same command again to continue" in stopped.err
    assert read_records(searched)[0].id in RunFolder(searched).report_file.read_text()
    tuner["stops_after"] = 9
    again = qra(*mixed)
    assert again.status == 0 and "1 of 2 tunings are finished, 1 left" in again.err
    assert len(tuner["tuned"]) == 2


def test_what_cannot_be_set_to_tune_a_plan_is_refused_before_anything_is_built(
    qra: Qra, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    built = tuner["built"]
    for options, why in (
        (("--steps", 3, "--epochs", 1), "--steps and --epochs both say how long to tune"),
        (
            ("--set", "space.bits=[2]"),
            "space.bits is 'auto' in this run and cannot be changed",
        ),
        (
            ("--set", "training.warmup=1"),
            "training.warmup is 1",
        ),
        (("--against", "rivals"), "'rivals' is not one of 'best', 'all', 'shuffled', 'none'"),
    ):
        done = qra(*mixed, *options)
        assert done.status == 2 and why in done.err and tuner["built"] == built


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plan.json", "{"),
        ("plan.json", "[]"),
        ("record.json", "{"),
        ("record.json", "[]"),
        ("record.json", "{}"),
    ],
)
def test_a_damaged_file_is_bad_input_in_a_line_that_names_it(
    qra: Qra, searched: Path, mixed: tuple[str | Path, ...], name: str, content: str
) -> None:
    assert qra(*mixed).status == 0
    (file,) = [searched / name] if name == "plan.json" else [next(searched.glob("tunings/*/record.json"))]
    file.write_text(content)
    for command in ("show", "report"):
        done = qra(command, searched)
        assert done.status == 2 and name in done.err and done.err.count("\n") == 1, command
