"""What trackers are sent: by a tool that keeps it all, and by TensorBoard, read back with its own reader."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from fakes import AdditiveEvaluator
from report_runs import Bits, Guessing, evil_space

from qra_search import Study
from qra_search.errors import BadInput
from qra_search.space.memory import format_bytes
from qra_search.trackers import TRACKERS, Tracker, check_tracker, tracked


class Kept(GeneralTracker):
    """A tool that keeps what it is sent, in `runs`; `fails_at` names a step at which it breaks."""

    name = "kept"
    requires_logging_directory = False
    runs: list[Kept] = []
    fails_at: int | None = None

    def __init__(self, run_name: str, **options: Any):
        super().__init__()
        self.project, self.options = run_name, options
        self.settings: dict[str, Any] = {}
        self.rows: dict[int, dict[str, float]] = {}
        self.ended = False
        self.defined: list[tuple[str, str]] = []

    def start(self) -> None:
        type(self).runs.append(self)

    @property
    def tracker(self) -> Kept:
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.defined.append((name, step_metric))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int | None = None, **more: Any) -> None:
        at = int(values["step"]) if step is None else step
        if at == self.fails_at:
            raise ConnectionError("the server\nis gone")
        self.rows.setdefault(at, {}).update(values)

    def finish(self) -> None:
        self.ended = True


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> type[Kept]:
    """The tool under the names `kept` and `wandb`, as if it were installed."""
    monkeypatch.setattr(Kept, "runs", [])
    monkeypatch.setattr(Kept, "fails_at", None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == "wandb" else find(name))
    for name in ("kept", "wandb"):
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, Kept)
    return Kept


def study(log: Path | str, *trackers: Tracker, evaluations: float = 12) -> Study:
    return Study(
        Bits(evil_space()), strategy=Guessing(), evaluations=evaluations, memory_budget="uniform3r4", log=log,
        callbacks=trackers,
    )  # fmt: skip


def test_every_trial_is_sent_with_its_figures_and_the_search_so_far(tmp_path: Path, kept: type[Kept]) -> None:
    running = study(tmp_path / "t.jsonl", Tracker("kept", tmp_path), evaluations=20)
    result = running.run()
    (run,), trials = kept.runs, running.log.trials
    assert sorted(run.rows) == [*(t.id for t in trials), len(trials)] and run.ended
    for trial in trials:
        row = run.rows[trial.id]
        assert all(type(v) is float and math.isfinite(v) for v in row.values())
        assert row.get("loss") == (trial.loss if trial.done else None)
        assert row.get("predicted_loss") == (trial.proposal.predicted_loss if trial.done else None)
    last, comparison = run.rows[trials[-1].id], result.comparison()
    assert comparison is not None
    size = format_bytes(running.memory_budgets[0]).replace(" ", "")
    assert last[f"best/{size}"] == pytest.approx(comparison.best.observed)
    assert last[f"gain/{size}"] == pytest.approx(comparison.gain)
    assert last["spent"] == pytest.approx(result.spent)
    assert last["failed"] == len(result.failures()) > 0
    assert run.rows[len(trials)]["result/loss"] == pytest.approx(comparison.best.loss)


def test_settings_are_plain_and_name_search_space_and_evaluator(tmp_path: Path, kept: type[Kept]) -> None:
    study(tmp_path / "t.jsonl", Tracker("kept:project", tmp_path)).run()
    (run,) = kept.runs
    assert run.project == "project"
    assert run.settings["strategy"] == "guessing" and run.settings["space.bits"] == "2, 3, 4, 8"
    assert run.settings["evaluator.task"] == "bits"
    assert all(isinstance(v, (str, int, float)) for v in run.settings.values())


def test_a_resumed_study_is_another_run_with_all_its_trials(tmp_path: Path, kept: type[Kept]) -> None:
    study(tmp_path / "t.jsonl", evaluations=6).run()
    running = study(tmp_path / "t.jsonl", Tracker("wandb", tmp_path), evaluations=12)
    running.run()
    (run,) = kept.runs
    assert run.options == {"name": tmp_path.name} and run.settings
    assert run.defined == [("*", "step")]  # its own step never goes back
    assert sorted(run.rows)[:-1] == [t.id for t in running.log.trials]


def test_a_tool_that_fails_is_sent_no_more_and_the_search_goes_on(
    tmp_path: Path, kept: type[Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "fails_at", 3)
    said: list[str] = []
    running = study(tmp_path / "t.jsonl", Tracker("kept", tmp_path, say=said.append))
    assert running.run().spent >= 12 and len(running.log) > 4
    assert sorted(kept.runs[0].rows) == [0, 1, 2] and not kept.runs[0].ended
    assert said == ["kept gets no more, the run goes on: ConnectionError: the server is gone"]


def test_a_tool_that_cannot_begin_is_refused_before_an_evaluation(
    tmp_path: Path, kept: type[Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Kept) -> None:
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(kept, "start", refuse)
    running = study(tmp_path / "t.jsonl", Tracker("kept:there", tmp_path))
    with pytest.raises(
        BadInput, match="tracker 'kept' cannot begin in there .ConnectionError: no route.: give"
    ) as error:
        running.run()
    assert "\n" not in str(error.value) and len(running.log) == 0


def test_a_stopped_study_ends_its_run(tmp_path: Path, kept: type[Kept]) -> None:
    class Stopping(Tracker):
        def finished(self, study: Study, trial: Any) -> None:
            super().finished(study, trial)
            study.stop()

    stopping = Stopping("kept", tmp_path)
    Study(AdditiveEvaluator(), strategy="random", evaluations=9, log=tmp_path / "t.jsonl", callbacks=[stopping]).run()
    assert kept.runs[0].ended and sorted(kept.runs[0].rows) == [0]  # the best is only foretold: no result


def test_the_steps_of_tunings_are_one_run(tmp_path: Path, kept: type[Kept]) -> None:
    with tracked(["wandb"], tmp_path / "a" / "tuning", {"training": {"steps": 9}}, print) as figures:
        figures("plan-1")(2, {"loss": 1.0, "validation_loss": math.nan})
    (run,) = kept.runs
    assert run.options == {"name": "a-tuning"} and run.settings == {"training.steps": 9}
    assert run.rows == {2: {"plan-1/loss": 1.0, "step": 2}} and run.ended


def test_the_names_of_the_trackers_are_accelerates() -> None:
    assert set(TRACKERS) <= set(LOGGER_TYPE_TO_CLASS)


@pytest.mark.parametrize("name", ["mlflow", "tensorboard", "trackio", "wandb"])
def test_a_tool_that_is_not_installed_is_named_with_the_command_that_brings_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"tracker '{name}' needs the package {name}: pip install {name}"):
        check_tracker(name)


def test_tensorboard_reads_every_loss_from_the_runs_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "a"
    running = study(run / "t.jsonl", Tracker("tensorboard", run))
    result, trials = running.run(), list(running.log.trials)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    seen = {e.step: e.value for e in events.Scalars("loss")}
    assert seen == pytest.approx({t.id: t.loss for t in trials if t.done})
    assert len(events.Scalars("loss")) == len(seen)
    best = min(t.loss for t in trials if t.done and t.evaluation.memory_bytes <= result.memory_budgets[0])
    (name,) = (tag for tag in events.Tags()["scalars"] if tag.startswith("best/"))
    assert events.Scalars(name)[-1].value >= best - 1e-6
    (settings,) = (run / "tensorboard").glob("*/hparams.yml")
    assert "space.bits: 2, 3, 4, 8" in settings.read_text()
