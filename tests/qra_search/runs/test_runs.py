"""The folder of a run: what may be begun in it, and what is read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qra_search import Study
from qra_search.config import RunConfig, make_config
from qra_search.errors import BadInput
from qra_search.files import write_json
from qra_search.runs.folder import NoRun, RunExists, RunFolder, find_runs
from qra_search.space.serialization import plan_to_dict
from qra_search.study.result import SearchResult
from qra_search.testing.scenarios import ToyEvaluator, toy_space


def config(**search: object) -> RunConfig:
    return make_config({"search": {"strategy": "random", "evaluations": 8, **search}})


def searched(path: Path, evaluations: float = 8) -> tuple[RunFolder, SearchResult]:
    """A run of a toy, made as the command makes it."""
    folder = RunFolder(path)
    settings = config(evaluations=evaluations)
    folder.begin(settings, resume=folder.exists)
    study = Study(ToyEvaluator(toy_space()), strategy="random", evaluations=evaluations, log=folder.log_file)
    folder.keep_config(settings)
    result = study.run()
    study.log.close()
    folder.write(result)
    return folder, result


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    folder, result = searched(tmp_path / "a")
    again = folder.result()
    assert again.to_dict() == result.to_dict()
    assert again.trials == result.trials
    best = result.best()
    assert best is not None and folder.plan() == best.plan


def test_a_result_file_that_counts_other_trials_is_not_believed(tmp_path: Path) -> None:
    folder, result = searched(tmp_path / "a")
    written = json.loads(folder.result_file.read_text())
    written["trials"] -= 1
    written["candidates"] = []
    folder.result_file.write_text(json.dumps(written))
    assert folder.result().to_dict() == result.to_dict()


def test_the_plan_of_a_search_that_was_killed_is_what_its_log_leads_to(tmp_path: Path) -> None:
    folder, result = searched(tmp_path / "a", 3)
    worst = max(result.space.uniform_plans(), key=result.space.memory_bytes)
    write_json(folder.plan_file, plan_to_dict(result.space, worst))
    assert folder.plan() == worst, "as it was written"
    study = Study(ToyEvaluator(toy_space()), strategy="random", evaluations=8, log=folder.log_file)
    longer = study.run()
    study.log.close()
    assert folder.plan() == longer.best().plan != worst
    folder.adapter.mkdir()
    assert folder.plan() == worst, "the adapter is of it"


def test_another_config_is_refused_with_the_field_and_both_values(tmp_path: Path) -> None:
    folder, _ = searched(tmp_path / "a")
    for resume in (False, True):
        with pytest.raises(RunExists, match=r"search.seed is 0 there and 5 here"):
            folder.begin(config(seed=5), resume=resume)


def test_the_same_config_needs_resume(tmp_path: Path) -> None:
    folder, _ = searched(tmp_path / "a")
    with pytest.raises(RunExists, match="resume it with"):
        folder.begin(config())
    folder.begin(config(), resume=True)


def test_more_evaluations_are_no_other_run_when_resumed(tmp_path: Path) -> None:
    folder, _ = searched(tmp_path / "a")
    with pytest.raises(RunExists, match="search.evaluations is 8.0 there and 12.0 here"):
        folder.begin(config(evaluations=12))
    folder.begin(config(evaluations=12), resume=True)
    assert folder.config().search.evaluations == 8, "the log may be another process's"
    folder.keep_config(config(evaluations=12))
    assert folder.config().search.evaluations == 12


def test_a_granularity_left_open_is_no_other_run_but_another_one_is(tmp_path: Path) -> None:
    fields = config().model_dump()
    fields["space"]["granularity"] = "module"
    folder = RunFolder(tmp_path / "a")
    folder.begin(make_config(fields))
    folder.keep_config(make_config(fields))
    folder.log_file.touch()
    folder.begin(config(), resume=True)
    folder.keep_config(config())
    folder.begin(make_config(fields), resume=True)
    folder.keep_config(make_config(fields))
    fields["space"]["granularity"] = "layer"
    with pytest.raises(RunExists, match="space.granularity is 'module' there and 'layer' here"):
        folder.begin(make_config(fields), resume=True)


def test_a_config_without_a_log_does_not_hold_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    folder.begin(config())
    folder.keep_config(config())
    folder.begin(config(seed=5))
    assert not folder.exists


def test_a_tuned_plan_keeps_its_file_while_it_is_the_best(tmp_path: Path) -> None:
    folder, result = searched(tmp_path / "a")
    folder.adapter.mkdir()
    tuned = json.loads(folder.plan_file.read_text()) | {"model": "tiny"}
    folder.plan_file.write_text(json.dumps(tuned))
    folder.write(result)
    assert json.loads(folder.plan_file.read_text())["model"] == "tiny"
    assert folder.adapter.is_dir()


def test_what_was_tuned_for_another_plan_is_set_aside(tmp_path: Path) -> None:
    folder, result = searched(tmp_path / "a")
    folder.adapter.mkdir()
    other = json.loads(folder.plan_file.read_text())
    other["groups"][0]["rank"] = 4 if other["groups"][0]["rank"] != 4 else 8
    folder.plan_file.write_text(json.dumps(other))
    folder.test_file.write_text("{}")
    for name in (stored := ("quantized.safetensors", "quantized.safetensors.sha256")):
        (folder.path / name).write_text("")
    folder.write(result)
    assert not folder.adapter.exists() and folder.test() is None
    assert all((folder.path / "earlier-1" / name).exists() and not (folder.path / name).exists() for name in stored)
    assert json.loads((folder.path / "earlier-1" / "plan.json").read_text()) == other
    best = result.best()
    assert best is not None and folder.plan() == best.plan


def test_what_a_kill_broke_off_while_it_was_set_aside_is_gone_on_with(tmp_path: Path, monkeypatch) -> None:
    folder, _ = searched(tmp_path / "a")
    folder.adapter.mkdir()
    folder.test_file.write_text("{}")
    for fails in (0, 1, 1):
        with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
            names = iter(range(9))
            rename = Path.rename
            killed.setattr(
                Path, "rename", lambda *paths, n=fails, i=names, do=rename: raising() if next(i) == n else do(*paths)
            )
            folder.set_aside()
        assert folder.half_aside and not folder.earlier()
    first = (folder.path / ".earlier.partial" / "plan.json").read_text()
    folder.plan_file.write_text("{}")  # as a search that goes on would write another's
    assert folder.set_aside() == folder.path / "earlier-1" and not folder.half_aside
    assert {item.name for item in (folder.path / "earlier-1").iterdir()} == {"adapter", "test.json", "plan.json"}
    assert (folder.path / "earlier-1" / "plan.json").read_text() == first


def raising() -> None:
    raise KeyboardInterrupt


def test_a_damaged_comparison_is_named(tmp_path: Path) -> None:
    folder, _ = searched(tmp_path / "a")
    for text in ("[]", '"x"', '{"tuned": 3}'):
        folder.test_file.write_text(text)
        with pytest.raises(BadInput, match="test.json is damaged: move it away"):
            folder.test()


def test_an_adapter_of_which_no_plan_is_known_is_set_aside(tmp_path: Path) -> None:
    folder, _ = searched(tmp_path / "a")
    folder.adapter.mkdir()
    folder.plan_file.unlink()
    nothing = Study(ToyEvaluator(toy_space()), strategy="random", evaluations=1).result()
    assert nothing.chosen() is None
    folder.write(nothing)
    assert (folder.path / "earlier-1" / "adapter").is_dir() and not folder.adapter.exists()


def test_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoRun, match="is not a folder"):
        RunFolder(tmp_path / "none").check()
    with pytest.raises(NoRun, match=r"holds no trials.jsonl"):
        RunFolder(tmp_path).check()
    folder, result = searched(tmp_path / "a")
    folder.plan_file.unlink()
    assert folder.plan() == result.chosen()  # which the log tells
    begun = RunFolder(tmp_path / "b")
    begun.begin(config())
    begun.keep_config(config())
    Study(ToyEvaluator(toy_space()), strategy="random", evaluations=1, log=begun.log_file).log.close()
    with pytest.raises(NoRun, match="has no plan yet"):
        begun.plan()
    folder.config_file.unlink()
    with pytest.raises(NoRun, match=r"has no config.yaml"):
        folder.config()


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    folder, _ = searched(tmp_path / "a")
    folder.result_file.write_text("{")
    with pytest.raises(ValueError, match=r"result.json is not JSON"):
        folder.result()


def test_runs_are_found_at_any_depth(tmp_path: Path) -> None:
    searched(tmp_path / "a" / "b")
    searched(tmp_path / "c")
    assert [run.name for run in find_runs(tmp_path)] == ["b", "c"]
