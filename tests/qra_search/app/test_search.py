"""Which plan and settings a run keeps when a search fails, is killed, or another process was faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qra_search import BadInput, Callback, Run
from qra_search.app.config import make_settings
from qra_search.app.evaluator import build_evaluator
from qra_search.app.folder import NoRun, RunFolder, read_plan_data
from qra_search.app.search import plan_run
from qra_search.errors import EvaluationFailed
from qra_search.files import write_json
from qra_search.schemas import TuningRecord
from qra_search.space.serialization import plan_to_dict
from qra_search.study.study import Listener, StudyFailed

SETTINGS: dict[str, Any] = {
    "evaluator": "landscape",
    "space": {"granularity": "layer"},
    "options": {"layers": 4},
    "search": {"strategy": "random", "evaluations": 12, "memory": "uniform3r8"},
}


def fail_to_evaluate(*args: Any, **kwargs: Any) -> Any:
    raise EvaluationFailed("out of memory")


def test_a_search_that_was_killed_has_the_plan_of_its_log(tmp_path: Path) -> None:
    class Killed(Callback):
        def on_result(self, study: Any, trial: Any) -> None:
            if len(study.log) == 9:
                raise KeyboardInterrupt

    with Run(tmp_path / "a", make_settings(SETTINGS)) as made:
        made.choose_plan()
        before = min(made.result.space.uniform_plans(), key=made.result.space.memory_bytes)
        write_json(made.folder.plan_file, plan_to_dict(made.result.space, before))
        with pytest.raises(KeyboardInterrupt):
            made.search(callbacks=[Killed()])
        assert made.plan == made.result.choose_plan() != before
        assert read_plan_data(made.path) == plan_to_dict(made.result.space, made.plan)


def test_a_search_of_which_nothing_came_leaves_the_run_its_plan(tmp_path: Path) -> None:
    with Run(tmp_path / "a", make_settings(SETTINGS)) as made:
        made.choose_plan()
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
