"""`Run`, the folders of the commands, from Python; and what is kept if a search fails, is killed, or is not first."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Qra

import qra_search
from qra_search import BadInput, Callback, Run, SearchResult, search
from qra_search.app.config import ConfigError, dump_config, make_config, make_settings
from qra_search.app.evaluator import build_evaluator
from qra_search.app.folder import NoRun, RunFolder, read_plan_data
from qra_search.app.report.finding import summarize_run
from qra_search.app.search import plan_run, search_run
from qra_search.errors import EvaluationFailed
from qra_search.files import write_json
from qra_search.schemas import TuningRecord
from qra_search.space.serialization import plan_to_dict
from qra_search.study.study import Listener, StudyFailed
from qra_search.testing.scenarios import ToyEvaluator

SETTINGS: dict[str, Any] = {
    "evaluator": "landscape",
    "space": {"granularity": "layer"},
    "options": {"layers": 4},
    "search": {"strategy": "random", "evaluations": 12, "memory": "uniform3r8"},
}


def run(config: Any, folder: Path, *, resume: bool = False, **options: Any) -> SearchResult:
    with Run(folder, make_settings(config)) as made:
        return made.search(resume=resume, **options)


def contents(folder: Path) -> dict[str, str]:
    """The files of a run that hold no times."""
    return {name: (folder / name).read_text() for name in ("config.yaml", "plan.json", "sensitivities.json")}


def test_it_leaves_the_folder_that_the_command_leaves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(SETTINGS, tmp_path / "a")
    assert Qra(capsys).search(tmp_path / "b").status == 0
    assert {f.name for f in (tmp_path / "a").iterdir()} == {f.name for f in (tmp_path / "b").iterdir()}
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert result.to_dict() == RunFolder(tmp_path / "b").read().result.to_dict()
    assert result.best() is not None and "uniform 3 bits" in (tmp_path / "a" / "report.html").read_text()


def test_a_config_is_an_object_a_mapping_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(make_config(SETTINGS)))
    for name, config in (("a", make_config(SETTINGS)), ("b", SETTINGS), ("c", file), ("d", str(file))):
        run(config, tmp_path / name)
    assert (
        contents(tmp_path / "a")
        == contents(tmp_path / "b")
        == contents(tmp_path / "c")
        == contents(tmp_path / "d")
    )


def test_a_run_works_outside_the_main_thread(tmp_path: Path) -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(run(SETTINGS, tmp_path / "a")))
    thread.start()
    thread.join()
    assert results and results[0].best() is not None


def test_what_is_refused_leaves_no_folder_and_what_failed_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qra_eval.evaluators.landscape import Landscape

    def fail(*args: object, **options: object) -> None:
        raise qra_search.EvaluationFailed("out of memory")

    with pytest.raises(qra_search.BudgetTooSmall):
        run({**SETTINGS, "search": {"memory": "1KiB"}}, tmp_path / "a")
    with pytest.raises(ConfigError):
        run({**SETTINGS, "search": {"memory": "much"}}, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(Landscape, "evaluate", fail)
    with pytest.raises(StudyFailed, match="out of memory"):
        run(SETTINGS, tmp_path / "a")
    assert RunFolder(tmp_path / "a").has_run


def test_a_log_that_was_begun_keeps_its_settings_and_a_second_process_those_of_the_first(
    tmp_path: Path,
) -> None:
    """Of a callback that cannot begin once the log has, and of two that begin at once."""

    class Unreachable(Callback):
        def on_start(self, study: Any) -> None:
            raise BadInput("no such server")

    with pytest.raises(BadInput, match="no such server"):
        run(SETTINGS, tmp_path / "a", callbacks=[Unreachable()])
    assert run(SETTINGS, tmp_path / "a", resume=True).spent == 12
    config, folder = make_settings(SETTINGS), RunFolder(tmp_path / "b")
    other = make_settings(SETTINGS, {"search.seed": 5})
    with (
        folder.begin(config),
        pytest.raises(KeyboardInterrupt),
        RunFolder(tmp_path / "b").begin(other),
    ):
        search_run(build_evaluator(config, print), config, folder, Listener())
        raise KeyboardInterrupt
    assert folder.config() == config
    for field, value in (("search.seed", 5), ("search.strategy", "nsga2")):
        other = make_settings(SETTINGS, {field: value})
        with (
            pytest.raises(BadInput, match=f"holds another run: {field} is"),
            folder.begin(config, resume=True),
        ):
            search_run(build_evaluator(other, print), other, folder, Listener())
    assert folder.config() == config


def test_workers_are_refused_live_objects(tmp_path: Path) -> None:
    live = Run(tmp_path / "a", make_settings(SETTINGS), objects={"model": object()})
    with pytest.raises(BadInput, match="workers cannot share an in-memory model or task"):
        live.search(workers=1)
    assert Run(tmp_path / "a", live.config).search(workers=1).spent == 12


def test_a_second_report_keeps_the_comparison_on_test_data(tmp_path: Path) -> None:
    run(SETTINGS, tmp_path / "a")
    folder = RunFolder(tmp_path / "a")
    plan = folder.read().require_plan()
    record = TuningRecord(plan, 0, 3, folder.read().result.space.memory_bytes(plan), 1.0, (1.5,), (1,))
    folder.tuning(record.id).path.mkdir(parents=True)
    folder.tuning(record.id).write(record)
    folder.select(record, 0)
    run(SETTINGS, tmp_path / "a", resume=True)
    assert "On test data" in folder.report_file.read_text()


def test_a_plan_that_the_search_found_after_a_tuning_is_said_not_to_be_tuned(tmp_path: Path) -> None:
    run(SETTINGS, tmp_path / "a")
    folder = RunFolder(tmp_path / "a")
    space = folder.read().result.space
    other = next(plan for plan in space.uniform_plans() if plan != folder.read().require_plan())
    record = TuningRecord(other, 0, 3, space.memory_bytes(other), 1.0, (1.5,), (1,))
    folder.tuning(record.id).path.mkdir(parents=True)
    folder.tuning(record.id).write(record)
    folder.select(record, 0)
    read = folder.read()
    text = summarize_run(read.result, read.comparison())
    searched, _, tuned = text.partition(
        "The run's plan is not tuned yet. These figures are for another plan. "
    )
    assert "whose test loss is 1.500" in tuned and "whose validation loss" in searched


def test_a_longer_search_goes_on_with_the_evaluator_that_the_run_holds(tmp_path: Path) -> None:
    with Run(tmp_path / "a", make_settings(SETTINGS)) as made:
        made.search(evaluations=6)
        held = made.evaluator()
        assert len(made.search(evaluations=12).trials) > 6
        assert made.evaluator() is held
        other = made.config.model_copy(update={"options": {"layers": 5}})
        assert made.evaluator(config=other) is not held


def test_progress_goes_where_it_is_asked_for_and_leaves_no_listener_for_the_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To nowhere, to a function, to the view by default, or where the evaluator reports."""
    options: dict[str, Any] = {"strategy": "random", "evaluations": 4, "memory_budget": "uniform4r8"}
    evaluator = ToyEvaluator()
    search(evaluator, **options, progress=False)
    assert evaluator.progress is None and capsys.readouterr() == ("", "")

    class Telling(ToyEvaluator):
        def sensitivities(self) -> Any:
            assert self.progress is not None
            self.progress("measure", 1, 3)
            self.progress("measure", 2, 3)
            return super().sensitivities()

    telling: Any = Telling()
    heard: list[Any] = []
    for _ in range(2):
        search(telling, **options, progress=lambda *step: heard.append(step))
    assert heard == [("measure", 1, 3), ("measure", 2, 3)] * 2 and telling.progress is None
    search(telling, **options)
    shown = capsys.readouterr()
    assert shown.out == "" and "measure" in shown.err and "loss" in shown.err
    telling.progress = lambda *step: heard.append(step)
    search(telling, **options, progress=True)
    assert len(heard) == 6 and "measure" not in capsys.readouterr().err


def fail_to_evaluate(*args: Any, **kwargs: Any) -> Any:
    raise EvaluationFailed("out of memory")


def test_a_search_that_was_killed_has_the_plan_of_its_log(tmp_path: Path) -> None:
    class Killed(Callback):
        def on_result(self, study: Any, trial: Any) -> None:
            if len(study.log) == 9:
                raise KeyboardInterrupt

    with Run(tmp_path / "a", make_settings(SETTINGS)) as made:
        made.make_plan()
        before = min(made.result.space.uniform_plans(), key=made.result.space.memory_bytes)
        write_json(made.folder.plan_file, plan_to_dict(made.result.space, before))
        with pytest.raises(KeyboardInterrupt):
            made.search(callbacks=[Killed()])
        assert made.plan == made.result.choose_plan() != before
        assert read_plan_data(made.path) == plan_to_dict(made.result.space, made.plan)


def test_a_search_of_which_nothing_came_leaves_the_run_its_plan(tmp_path: Path) -> None:
    with Run(tmp_path / "a", make_settings(SETTINGS)) as made:
        made.make_plan()
        before, space = made.plan, made.result.space
        record = TuningRecord(before, 0, 3, space.memory_bytes(before), 1.0, (1.5,), (1,))
        made.folder.tuning(record.id).path.mkdir(parents=True)
        made.folder.tuning(record.id).write(record)
        made.folder.select(record, 0)
        made.evaluator().evaluate = fail_to_evaluate  # type: ignore[method-assign]
        with pytest.raises(
            StudyFailed, match="the first 5 evaluations all failed, the last with: .*out of memory"
        ):
            made.search()
        assert made.plan == before and made.folder.read().comparison() is not None
        made.folder.plan_file.unlink()  # as if killed
        with pytest.raises(NoRun, match="has no plan yet"):
            made.folder.read().require_plan()
        assert made.folder.read().comparison() is not None, "the tuning is shown nevertheless"


def test_what_another_process_planned_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    config, other = make_settings(SETTINGS), make_settings(SETTINGS, {"search.memory": ["uniform2r4"]})
    folder, evaluator = RunFolder(tmp_path / "a"), build_evaluator(config, print)
    measure = evaluator.sensitivities

    def measure_slowly() -> Any:
        with folder.begin(other):
            plan_run(build_evaluator(other, print), other, folder, Listener())
        return measure()

    evaluator.sensitivities = measure_slowly  # type: ignore[method-assign]
    with folder.begin(config), pytest.raises(BadInput, match="holds another run: search.memory is"):
        plan_run(evaluator, config, folder, Listener())
    read = folder.read()
    assert read.config == other
    assert read.result.space.memory_bytes(read.require_plan()) <= read.result.memory_budgets[-1]


def test_a_number_that_was_refused_is_no_setting(tmp_path: Path) -> None:
    with Run(tmp_path / "a", make_settings(SETTINGS)) as made:
        made.search(evaluations=6)
        with pytest.raises(BadInput, match="has spent 6 evaluations"):
            made.search(evaluations=3)
        assert made.search().spent == 6


SEARCH = """
import sys
import time
from pathlib import Path
from qra_search import BadInput, Run
from qra_search.app import search
from qra_search.app.config import make_settings

role, folder = sys.argv[1], Path(sys.argv[2])
settings = {"evaluator": "landscape", "space": {"granularity": "layer"}, "options": {"layers": 4}}
settings["search"] = {"strategy": "random", "evaluations": 6, "memory": "uniform3r8"}
make = search.Study


def make_slowly(*given, **options):
    "Called while the log is locked, and nothing is written in it."
    folder.with_name("locked").touch()
    while not folder.with_name("refused").exists():
        time.sleep(0.01)
    return make(*given, **options)


if role == "first":
    search.Study = make_slowly
try:
    Run(folder, make_settings(settings)).search(resume=False, progress=False)
except BadInput as error:
    sys.exit(f"refused: {error}")
"""


def test_the_process_that_is_refused_leaves_the_log_of_the_other(tmp_path: Path) -> None:
    script = tmp_path / "search.py"
    script.write_text(SEARCH)
    run, locked = tmp_path / "a", tmp_path / "locked"
    first = subprocess.Popen(
        [sys.executable, str(script), "first", str(run)], stderr=subprocess.PIPE, text=True
    )
    try:
        while first.poll() is None and not locked.exists():
            time.sleep(0.01)
        second = subprocess.run(
            [sys.executable, str(script), "second", str(run)], stderr=subprocess.PIPE, text=True, check=False
        )
        assert second.returncode == 1 and "is being written by" in second.stderr
        assert (run / "trials.jsonl.lock").exists()
    finally:
        (tmp_path / "refused").touch()
        _, errors = first.communicate()
    assert first.returncode == 0, errors
    assert RunFolder(run).read().result.spent == 6 and RunFolder(run).plan_file.is_file()
