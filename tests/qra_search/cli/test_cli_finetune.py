"""`qra finetune`, with an evaluator that tunes at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Qra

from qra_search import Plan, open_run
from qra_search.config import dump_config, load_config, make_config
from qra_search.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("tuner")


def test_finetune_saves_the_adapter_and_compares_with_the_best_uniform_plan(
    qra: Qra, tmp_path: Path, searched: Path
) -> None:
    mixed = tmp_path / "mixed.json"
    assert qra("plans", "edit", searched, "--set", "*=3:8", "--set", "layers.0=2:8", "--out", mixed).status == 0
    done = qra("finetune", searched, "--plan", mixed)
    assert done.status == 0, done.err
    run = RunFolder(searched)
    entries = json.loads(run.test_file.read_text())["tuned"]
    assert [e["role"] for e in entries] == ["found", "uniform"]
    assert run.adapter.is_dir()
    assert "whose test loss is" in done.out and "exact match" in done.out and "25" in done.out
    assert "On test data" in run.report_file.read_text()


@pytest.fixture
def mixed(qra: Qra, tmp_path: Path, searched: Path) -> tuple[str | Path, ...]:
    """The command that tunes a mixed plan of a run in `searched`."""
    file = tmp_path / "mixed.json"
    assert qra("plans", "edit", searched, "--set", "*=3:8", "--set", "layers.0=2:8", "--out", file).status == 0
    return ("finetune", searched, "--plan", file)


def test_a_uniform_plan_that_cannot_be_tuned_counts_as_lost(
    qra: Qra, tmp_path: Path, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    tuner["failing"] = True
    done = qra(*mixed, "--against", "all")
    assert done.status == 0, done.err
    assert len(tuner["tuned"]) > 2
    assert (
        "no uniform plan to compare it with" in done.out and done.out.count("out of memory") == len(tuner["tuned"]) - 1
    )
    assert "exact match" in done.out
    run = RunFolder(tmp_path / "a")
    reasons = {e.get("failed") for e in json.loads(run.test_file.read_text())["tuned"] if e["role"] == "uniform"}
    assert reasons == {"out of memory: 3 GiB more are needed"}
    report = run.report_file.read_text()
    assert "out of memory" in report and "Exact match" in report


def test_every_tuning_has_a_folder_of_its_own_and_trackers_hear_of_its_steps(
    qra: Qra, tmp_path: Path, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = qra(*mixed, "--seeds", 2, "--track", "tensorboard")
    assert done.status == 0, done.err
    names = [kept.name for kept in tuner["kept"]]
    assert len(set(names)) == 4 and {kept.parent for kept in tuner["kept"]} == {tmp_path / "a" / "tuning"}
    events = EventAccumulator(str(tmp_path / "a" / "tuning" / "tensorboard"))
    events.Reload()
    for name in names:
        assert [(e.step, e.value) for e in events.Scalars(f"{name}/loss")] == [(1, 2.5), (2, 2.0)]
        assert f"{name}/validation_loss" not in events.Tags()["scalars"]


def test_settings_of_training_set_anew_are_recorded_and_tune_again(
    qra: Qra, tmp_path: Path, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    test = RunFolder(tmp_path / "a").test_file
    assert qra(*mixed).status == 0
    assert len(tuner["tuned"]) == 2
    anew = ("--epochs", 2, "--set", "finetune.evaluate_every=5", "--set", "training.schedule=cosine")
    assert qra(*mixed, *anew).status == 0
    told = json.loads(test.read_text())["conditions"]
    assert (told["training"]["schedule"], told["finetune"]["epochs"], told["finetune"]["evaluate_every"]) == (
        "cosine", 2.0, 5,
    )  # fmt: skip
    assert len(tuner["tuned"]) == 4
    assert qra(*mixed, *anew, "--set", "finetune.checkpoint_every=7").status == 0 and len(tuner["tuned"]) == 4


@pytest.mark.parametrize("what", ["steps of the run", "rows"])
def test_what_was_tuned_otherwise_is_set_aside_and_tuned_again(
    qra: Qra, searched: Path, tuner: dict[str, Any], what: str
) -> None:
    """It is said where it is; until then an export has it, and the plan stays what it was."""
    assert qra("finetune", searched).status == 0
    first, plan = list(tuner["tuned"]), RunFolder(searched).plan_file.read_bytes()
    if what == "rows":
        tuner["data"] = "other rows"
    else:
        config = RunFolder(searched).config_file
        config.write_text(dump_config(make_config(load_config(config).model_dump(), {"finetune.steps": 3})))
    again = qra("finetune", searched)
    assert again.status == 0 and [job[:2] for job in tuner["tuned"]] == [job[:2] for job in first] * 2
    aside = searched / "earlier-1"
    assert f"what was tuned before is kept in {aside}" in " ".join(again.err.split())
    assert (aside / "adapter").is_dir() and (aside / "plan.json").read_bytes() == plan


def test_a_length_is_one_however_it_is_given(qra: Qra, tuner: dict[str, Any], mixed: tuple[str | Path, ...]) -> None:
    assert qra(*mixed, "--steps", 9).status == 0
    count = len(tuner["tuned"])
    assert {steps for _, _, steps in tuner["tuned"]} == {9}
    assert qra(*mixed, "--set", "finetune.steps=9").status == 0 and len(tuner["tuned"]) == count


def test_what_another_plan_was_compared_with_is_not_tuned_again(
    qra: Qra, tmp_path: Path, searched: Path, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    """Also if the search took the comparison away, since another plan was best."""
    assert qra(*mixed, "--with-16-bit").status == 0
    run, other = RunFolder(searched), tmp_path / "other.json"
    assert run.write(run.result()) == run.path / "earlier-1" and not run.test_file.exists()
    assert qra("plans", "edit", searched, "--set", "*=3:8", "--set", "layers.1=2:8", "--out", other).status == 0
    tuner["tuned"].clear()
    assert qra("finetune", searched, "--plan", other, "--with-16-bit").status == 0
    assert tuner["tuned"] == [(Plan((3, 2, 3, 3), (8,) * 4), 0, 100)]
    assert {e["role"] for e in json.loads(run.test_file.read_text())["tuned"]} == {"found", "uniform", "16-bit"}


def test_two_processes_do_not_tune_in_one_folder(qra: Qra, searched: Path, tuner: dict[str, Any]) -> None:
    run = RunFolder(searched)
    with run.tuning_alone():
        refused = qra("finetune", searched)
    assert refused.status == 2 and "another process tunes in" in refused.err and not tuner["tuned"]
    other = searched / "uniform.json"
    assert qra("plans", "edit", searched, "--set", "*=2:4", "--out", other).status == 0
    assert qra("finetune", searched, "--plan", other).status == 0
    with run.tuning_alone():  # nor does a search take its files away
        assert run.write(run.result()) is None and run.adapter.is_dir() and run.plan() == Plan((2,) * 4, (4,) * 4)


def test_what_cannot_be_set_to_tune_a_plan_is_refused_before_anything_is_built(
    qra: Qra, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    built = tuner["built"]
    for options, why in (
        (("--steps", 3, "--epochs", 1), "--steps and --epochs both say how long to tune"),
        (("--set", "finetune.patience=2"), "finetune.patience is 2: it counts looks at the validation loss"),
        (("--set", "space.bits=[2]"), "space.bits is [2, 3, 4, 8] in this run: only fields of training and finetune"),
        (("--set", "training.schedule=step"), "training.schedule is 'step': input should be 'linear', 'cosine' or"),
        (("--track", "nothing"), "nothing"),
    ):
        done = qra(*mixed, *options)
        assert done.status == 2 and why in done.err and tuner["built"] == built


def test_a_dry_run_of_a_tuning_prints_its_settings_and_tunes_nothing(
    qra: Qra, tmp_path: Path, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    done = qra(*mixed, "--epochs", 2, "--set", "training.schedule=cosine", "--dry-run")
    assert done.status == 0 and "schedule: cosine" in done.out and "Nothing was run" in done.out
    assert not tuner["tuned"] and not RunFolder(tmp_path / "a").test_file.exists()
    short = qra(*mixed, "--steps", 5, "--seeds", 3, "--with-16-bit", "--dry-run")
    assert "steps: 5" in short.out and "9, of 5 steps each: 3 plans with 3 seeds" in short.out
    assert "evaluations" not in short.out.partition("Space and cost")[2]
    refused = qra(*mixed[:-1], tmp_path / "none.json", "--dry-run")
    assert refused.status == 2 and "none.json does not exist" in refused.err


def test_what_a_tuning_gave_prints_as_the_finding_and_a_table(tmp_path: Path, mixed: tuple[str | Path, ...]) -> None:
    with open_run(tmp_path / "a") as run:
        done = run.finetune(mixed[-1])
    shown = str(done).splitlines()
    assert "test loss" in shown[0] and shown[2].split()[:2] == ["plan", "size"]
    assert len([line for line in shown if "MiB" in line]) >= len(done.tested) == 2
    assert "95% interval" not in str(done)  # no losses by row
    assert repr(done).startswith("Finetuned(") and "<pre" in done._repr_html_()


def test_the_chosen_plan_failing_is_an_error_and_recorded(
    qra: Qra, tmp_path: Path, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    tuner["failing"] = False
    done = qra(*mixed)
    assert done.status == 1
    assert "the plan could not be tuned with seed 0: out of memory: 3 GiB more are needed" in done.err
    run = RunFolder(tmp_path / "a")
    (entry,) = json.loads(run.test_file.read_text())["tuned"]
    assert (entry["role"], entry["failed"]) == ("found", "out of memory: 3 GiB more are needed")
    assert "out of memory" in run.report_file.read_text()
    assert qra("show", tmp_path / "a").status == 0 and qra("report", tmp_path / "a").status == 0


def test_an_adapter_that_does_not_load_back_is_an_error_after_all_is_recorded_and_shown(
    qra: Qra, tmp_path: Path, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    tuner["forgetful"] = True
    done = qra(*mixed)
    assert done.status == 1 and "test loss" in done.out
    assert "does not load back as it was tuned: logits differ by up to 0.5" in done.err
    assert [e["role"] for e in json.loads(RunFolder(tmp_path / "a").test_file.read_text())["tuned"]] == [
        "found",
        "uniform",
    ]
    count = len(tuner["tuned"])
    again = qra(*mixed)
    assert again.status == 1 and "does not load back" in again.err and len(tuner["tuned"]) == count


def test_a_run_is_tuned_on_the_device_that_is_given(qra: Qra, searched: Path, tuner: dict[str, Any]) -> None:
    assert qra("finetune", searched, "--device", "cuda:1", "--against", "none").status == 0
    assert tuner["devices"] == ["cuda:1"]
    assert RunFolder(searched).config().model.device == "auto"


def test_a_plan_found_that_is_uniform_itself_is_said_to_beat_nothing(qra: Qra, tmp_path: Path, searched: Path) -> None:
    plan = tmp_path / "p.json"
    qra("plans", "edit", searched, "--set", "*=3:8", "--out", plan)
    assert "beats uniform 3 bits, rank 8" in qra("finetune", searched, "--plan", plan).out


def test_against_all_tunes_every_uniform_plan_that_fits(qra: Qra, searched: Path, tuner: dict[str, Any]) -> None:
    result = RunFolder(searched).result()
    fitting = [p for p in result.space.uniform_plans() if result.space.memory_bytes(p) <= result.memory_budgets[0]]
    assert qra("finetune", searched, "--against", "all", "--steps", 3, "--json").status == 0
    plans = {plan.key for plan, _, _ in tuner["tuned"]}
    assert {p.key for p in fitting} <= plans
    assert {steps for _, _, steps in tuner["tuned"]} == {3}


def test_ctrl_c_keeps_what_was_tuned_and_says_so(
    qra: Qra, searched: Path, tuner: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qra_search.workflow import comparing as final

    tuned = final._measured

    def interrupted(*args: Any) -> Any:
        if tuner["tuned"]:
            raise KeyboardInterrupt
        return tuned(*args)

    monkeypatch.setattr(final, "_measured", interrupted)
    stopped = qra("finetune", searched, "--against", "all")
    assert stopped.status == 130 and "Give the same command again to go on" in stopped.err
    first = list(tuner["tuned"])
    assert len(first) == 1
    monkeypatch.setattr(final, "_measured", tuned)
    assert qra("finetune", searched, "--against", "all").status == 0
    assert tuner["tuned"].count(first[0]) == 1


def test_several_seeds_give_an_interval(qra: Qra, searched: Path, tuner: dict[str, Any]) -> None:
    shown = qra("finetune", searched, "--against", "none", "--seeds", 3)
    assert shown.status == 0
    assert [seed for _, seed, _ in tuner["tuned"]] == [0, 1, 2]
    assert "±" in shown.out


def test_a_plan_from_a_file_or_for_a_smaller_budget_is_tuned_instead(
    qra: Qra, tmp_path: Path, tuner: dict[str, Any]
) -> None:
    qra.search(tmp_path / "a", strategy="additive", evaluations=20)
    assert qra("plans", "edit", tmp_path / "a", "--set", "*=2:4", "--out", tmp_path / "p.json").status == 0
    assert qra("finetune", tmp_path / "a", "--plan", tmp_path / "p.json", "--against", "none").status == 0
    assert tuner["tuned"][-1][0] == Plan((2,) * 4, (4,) * 4)
    result = RunFolder(tmp_path / "a").result()
    assert qra("finetune", tmp_path / "a", "--memory", "uniform2r16", "--against", "none").status == 0
    best = result.best(result.space.memory_bytes(Plan((2,) * 4, (16,) * 4)))
    assert best is not None and tuner["tuned"][-1][0] == best.plan
