"""What every tracker is told, by one that keeps it all; and what becomes of one that fails."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes import AdditiveEvaluator
from report_runs import Bits, Guessing, evil_space

from qra_search import Study, plugins
from qra_search.integrations.trackers import Tracker, check_tracker, make_tracker
from qra_search.integrations.trackers.base import size_name
from qra_search.study.result import SearchResult


class Kept(Tracker):
    """Keeps what it is told."""

    name = "kept"
    extra = "kept"

    def __init__(self) -> None:
        super().__init__(Path("run"), None)
        self.settings: dict[str, Any] = {}
        self.known: list[str | None] = []
        self.rows: dict[int, dict[str, float]] = {}
        self.ends: list[bool] = []

    def open(self, settings: Mapping[str, Any], known: str | None) -> str:
        self.settings = dict(settings)
        self.known.append(known)
        return "identity"

    def log(self, figures: Mapping[str, float], step: int) -> None:
        assert step not in self.rows, "a trial was told twice"
        self.rows[step] = dict(figures)

    def close(self, result: SearchResult, *, complete: bool) -> None:
        self.ends.append(complete)


def study(log: Path | str, *callbacks: Tracker, evaluations: float = 12) -> Study:
    return Study(
        Bits(evil_space()), strategy=Guessing(), evaluations=evaluations, memory_budget="uniform3r4", log=log,
        callbacks=callbacks,
    )  # fmt: skip


def test_every_trial_is_told_with_its_figures_and_how_the_search_stands(tmp_path: Path) -> None:
    kept = Kept()
    running = study(tmp_path / "t.jsonl", kept, evaluations=20)
    result = running.run()
    trials = running.log.trials
    assert sorted(kept.rows) == [t.id for t in trials]
    for trial in trials:
        row = kept.rows[trial.id]
        assert all(type(v) is float and math.isfinite(v) for v in row.values())
        assert row.get("loss") == (trial.loss if trial.done else None)
        assert row.get("predicted_loss") == (trial.proposal.predicted_loss if trial.done else None)
    last, comparison = kept.rows[trials[-1].id], result.comparison()
    assert comparison is not None
    size = size_name(running.memory_budgets[0])
    assert last[f"best/{size}"] == pytest.approx(comparison.best.observed)
    assert last[f"gain/{size}"] == pytest.approx(comparison.gain)
    assert last["spent"] == pytest.approx(result.spent)
    assert last["failed"] == len(result.failures()) > 0
    assert kept.ends == [True]


def test_settings_are_plain_and_name_search_space_and_evaluator(tmp_path: Path) -> None:
    kept = Kept()
    study(tmp_path / "t.jsonl", kept).run()
    assert kept.settings["strategy"] == "guessing"
    assert kept.settings["space.bits"] == "2, 3, 4, 8"
    assert kept.settings["evaluator.task"] == "bits"
    assert all(isinstance(v, (str, int, float)) for v in kept.settings.values())


def test_a_study_that_is_gone_on_with_goes_on_in_the_same_run(tmp_path: Path) -> None:
    first, second = Kept(), Kept()
    study(tmp_path / "t.jsonl", first, evaluations=6).run()
    running = study(tmp_path / "t.jsonl", second, evaluations=12)
    running.run()
    assert first.known == [None] and second.known == ["identity"]
    assert not set(first.rows) & set(second.rows)
    assert sorted({**first.rows, **second.rows}) == [t.id for t in running.log.trials]
    # The standing goes on as well: what the first run found counts for the second.
    assert min(second.rows.values(), key=lambda r: r["spent"])["spent"] > 6


def test_a_study_that_was_not_tracked_before_is_told_from_its_first_trial_on(tmp_path: Path) -> None:
    study(tmp_path / "t.jsonl", evaluations=6).run()
    kept = Kept()
    running = study(tmp_path / "t.jsonl", kept, evaluations=12)
    running.run()
    assert sorted(kept.rows) == [t.id for t in running.log.trials]


def test_a_tool_that_fails_is_told_no_more_and_the_search_goes_on(tmp_path: Path) -> None:
    class Failing(Kept):
        def log(self, figures: Mapping[str, float], step: int) -> None:
            super().log(figures, step)
            if step == 3:
                raise ConnectionError("the server\nis gone")

    failing, said = Failing(), []
    failing.say = said.append
    running = study(tmp_path / "t.jsonl", failing)
    result = running.run()
    assert result.spent >= 12 and len(running.log) > 4
    assert sorted(failing.rows) == [0, 1, 2, 3] and failing.ends == []
    assert said == ["kept gets no more, the run goes on: ConnectionError: the server is gone"]


def test_a_stopped_study_ends_incomplete(tmp_path: Path) -> None:
    class Stopping(Kept):
        def finished(self, study: Study, trial: Any) -> None:
            super().finished(study, trial)
            study.stop()

    stopping = Stopping()
    Study(AdditiveEvaluator(), strategy="random", evaluations=9, log=tmp_path / "t.jsonl", callbacks=[stopping]).run()
    assert stopping.ends == [False] and len(stopping.rows) == 1


def test_trackers_are_installed_and_may_be_told_where_they_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plugins.names("trackers") == ["mlflow", "tensorboard", "trackio", "wandb"]
    asked = []

    class Asked(Kept):
        def __init__(self, *given: Any) -> None:
            super().__init__()
            asked.append(given)

    monkeypatch.setattr(plugins, "load", lambda kind, name: Asked)
    tracker = make_tracker("mlflow:sqlite:///x.db", tmp_path / "run", say=print)
    assert asked == [(tmp_path / "run", "sqlite:///x.db")] and tracker.say is print


@pytest.mark.parametrize("name", ["mlflow", "tensorboard", "trackio", "wandb"])
def test_a_tool_that_is_not_installed_is_named_with_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, {"tensorboard": "torch.utils.tensorboard"}.get(name, name), None)
    with pytest.raises(ImportError, match=rf"tracker '{name}' needs .*: pip install 'qra-toolkit\[{name}\]'"):
        make_tracker(name, tmp_path)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"tracker '{name}' needs {name}: pip install 'qra-toolkit\[{name}\]'"):
        check_tracker(name)
