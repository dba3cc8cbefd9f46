"""Each tracker against the real tool, in files on this disk: what was told is read back with the tool's own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_runs import Bits, Guessing, evil_space

from qra_search import SearchResult, Study
from qra_search.integrations.trackers import Tracker, make_tracker


def tracked(folder: Path, tracker: Tracker, evaluations: float) -> tuple[SearchResult, list[Any]]:
    folder.mkdir(exist_ok=True)
    study = Study(
        Bits(evil_space()), strategy=Guessing(), evaluations=evaluations, memory_budget="uniform3r4",
        log=folder / "trials.jsonl", callbacks=[tracker],
    )  # fmt: skip
    result = study.run()
    assert not tracker.failed
    return result, list(study.log.trials)


def losses(trials: list[Any]) -> dict[int, float]:
    return {t.id: t.loss for t in trials if t.done}


def test_tensorboard_reads_every_loss_from_the_runs_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "a"
    tracked(run, make_tracker("tensorboard", run), 6)
    result, trials = tracked(run, make_tracker("tensorboard", run), 12)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    seen = {e.step: e.value for e in events.Scalars("loss")}
    assert seen == pytest.approx(losses(trials))
    assert len(events.Scalars("loss")) == len(seen)
    best = min(t.loss for t in trials if t.done and t.evaluation.memory_bytes <= result.memory_budgets[0])
    (name,) = (tag for tag in events.Tags()["scalars"] if tag.startswith("best/"))
    assert events.Scalars(name)[-1].value >= best - 1e-6
    texts = events.Tags()["tensors"]
    assert {"settings/text_summary", "plan/text_summary", "result/text_summary"} <= set(texts)


def test_tensorboard_gathers_runs_below_a_folder_that_is_given(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    for name in "ab":
        tracked(tmp_path / name, make_tracker(f"tensorboard:{tmp_path / 'all'}", tmp_path / name), 4)
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["a", "b"]
    assert all(list((tmp_path / "all" / name).glob("events.out.tfevents.*")) for name in "ab")


def test_mlflow_holds_one_run_with_parameters_metrics_and_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the package mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="MLflow's local store needs SQLAlchemy")
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri, run = f"sqlite:///{tmp_path}/runs.db", tmp_path / "a"
    tracked(run, make_tracker(f"mlflow:{uri}", run), 6)
    result, trials = tracked(run, make_tracker(f"mlflow:{uri}", run), 12)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("qra")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "a" and found.info.status == "FINISHED"
    assert found.data.params["strategy"] == "guessing" and found.data.params["space.bits"] == "2, 3, 4, 8"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert {m.step: m.value for m in history} == pytest.approx(losses(trials)) and len(history) == len(losses(trials))
    folder = Path(client.download_artifacts(found.info.run_id, "", str(tmp_path)))
    assert json.loads((folder / "result.json").read_text())["trials"] == len(trials)
    best = result.best()
    assert best is not None
    assert tuple(g["bits"] for g in json.loads((folder / "plan.json").read_text())["groups"]) == best.plan.bits


def test_mlflow_that_cannot_write_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="the package mlflow is not installed")
    with pytest.raises(ValueError, match="tracker 'mlflow' cannot use 'nonsense://x'"):
        make_tracker("mlflow:nonsense://x", tmp_path)


def test_trackio_holds_every_loss_in_its_own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="the package trackio is not installed")
    from trackio import sqlite_storage
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "store")
    run = tmp_path / "a"
    tracked(run, make_tracker("trackio:project", run), 6)
    _, trials = tracked(run, make_tracker("trackio:project", run), 12)
    assert SQLiteStorage.get_runs("project") == ["a"]
    rows = SQLiteStorage.get_logs("project", "a")
    seen = {r["step"]: r["loss"] for r in rows if "loss" in r}
    assert seen == pytest.approx(losses(trials))
    assert rows[-1]["result/loss"] > 0


def test_wandb_takes_every_figure_into_one_run_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    from qra_search.integrations.trackers.wandb import WandbTracker

    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "a"
    tracker = WandbTracker(run, None)
    sent: list[dict[str, float]] = []
    opened = tracker.open

    def open_and_listen(settings: Any, known: str | None) -> str:
        identity = opened(settings, known)
        log = tracker._run.log
        monkeypatch.setattr(tracker._run, "log", lambda figures: (sent.append(dict(figures)), log(figures)))
        return identity

    monkeypatch.setattr(tracker, "open", open_and_listen)
    _, trials = tracked(run, tracker, 6)
    assert {row["step"]: row["loss"] for row in sent if "loss" in row} == pytest.approx(losses(trials))
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
