"""A run as an Optuna study: read back with Optuna, and shown by optuna-dashboard where it is installed."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Qra
from report_runs import evil_space, make_run

from qra_search.runs.folder import RunFolder

optuna = pytest.importorskip("optuna", reason="the package optuna is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("optuna") / "a", space=evil_space(2))


@pytest.fixture
def qra(capsys: pytest.CaptureFixture[str]) -> Qra:
    return Qra(capsys)


def storage(path: Path) -> Any:
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def test_optuna_reads_every_trial_and_finds_the_same_front(qra: Qra, run: RunFolder, tmp_path: Path) -> None:
    done = qra("export", run.path, "--format", "optuna-study", "--out", tmp_path / "o", "--json")
    assert done.status == 0, done.err
    path = Path(done.json["path"])
    assert path == tmp_path / "o" / "study.log" and str(path) in done.json["notes"][0]
    study = optuna.load_study(study_name="a", storage=storage(path))
    result = run.result()
    assert len(study.trials) == len(result.trials)
    for theirs, ours in zip(study.trials, result.trials, strict=True):
        assert [theirs.params[f"{g} bits"] for g in result.space.names] == list(ours.plan.bits)
        assert [theirs.params[f"{g} rank"] for g in result.space.names] == list(ours.plan.ranks)
        assert theirs.user_attrs["origin"] == ours.proposal.origin
        assert theirs.datetime_complete.timestamp() == pytest.approx(ours.finished_at)
        if ours.done:
            assert theirs.values == [ours.loss, ours.evaluation.memory_bytes / 2**20]
        else:
            assert theirs.state == optuna.trial.TrialState.FAIL and theirs.user_attrs["reason"] == ours.reason
    assert result.failures()
    # Plans that were evaluated twice have two points there and one mean here.
    once = {c.plan.key for c in result.candidates if c.evaluations == 1}
    front = {c.plan.key for c in result.front} & once
    names = result.space.names
    theirs = {
        ",".join(str(t.params[f"{g} bits"]) for g in names) + "|" + ",".join(str(t.params[f"{g} rank"]) for g in names)
        for t in study.best_trials
    }
    assert front and front <= theirs
    assert study.user_attrs["strategy"] == "guessing" and study.user_attrs["task"] == "bits"


def test_a_trial_at_low_fidelity_is_pruned(tmp_path: Path) -> None:
    from fakes import AdditiveEvaluator

    from qra_search import Study
    from qra_search.exchange.optuna_study import OptunaStudyExporter
    from qra_search.strategies.random import RandomStrategy

    class Cheap(RandomStrategy):
        def propose(self, state: Any, n: int) -> Any:
            return [p.__class__(p.plan, fidelity=0.5, seed=p.seed) for p in super().propose(state, n)]

    run = RunFolder(tmp_path / "low")
    run.path.mkdir()
    study = Study(AdditiveEvaluator(), strategy=Cheap(), evaluations=9, log=run.log_file)
    study.run()
    study.log.close()
    written = OptunaStudyExporter(study="mine").export(run.path, tmp_path / "low.log")
    low = [t for t in optuna.load_study(study_name="mine", storage=storage(written.path)).trials if t.values is None]
    assert low and {t.state for t in low} == {optuna.trial.TrialState.PRUNED}
    assert all(t.user_attrs["loss at this fidelity"] > 0 and t.user_attrs["fidelity"] == 0.5 for t in low)


def test_what_is_in_the_way_or_missing_is_said(
    qra: Qra, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("export", run.path, "--format", "optuna-study", "--out", tmp_path / "s.log")
    assert qra(*command).status == 0
    again = qra(*command)
    assert again.status == 2 and "s.log exists already" in again.err
    assert "has no option 'nam': it has study" in qra(*command, "--option", "nam=x").err
    assert qra("export", run.path, "--format", "optuna-study", "--check").status == 0
    assert "is no run" in qra("export", tmp_path, "--format", "optuna-study").err
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert "pip install 'qra-toolkit[optuna]'" in qra("export", run.path, "--format", "optuna-study", "--out", "x").err


def test_the_dashboard_shows_the_run(qra: Qra, run: RunFolder, tmp_path: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="the package optuna-dashboard is not installed")
    import threading
    from wsgiref.simple_server import make_server

    assert qra("export", run.path, "--format", "optuna-study", "--out", tmp_path / "s.log").status == 0
    server = make_server("127.0.0.1", 0, dashboard.wsgi(storage(tmp_path / "s.log")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        (summary,) = json.loads(urllib.request.urlopen(f"{base}/api/studies").read())["study_summaries"]
        shown = json.loads(urllib.request.urlopen(f"{base}/api/studies/{summary['study_id']}").read())
    finally:
        server.shutdown()
    result = run.result()
    assert summary["study_name"] == "a" and summary["directions"] == ["minimize", "minimize"]
    losses = [t["values"][0] for t in shown["trials"] if t["state"] == "Complete"]
    assert losses == pytest.approx([t.loss for t in result.trials if t.done])
    assert shown["objective_names"] == ["loss", "memory MiB"]
