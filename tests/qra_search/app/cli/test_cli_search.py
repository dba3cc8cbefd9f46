"""`qra search`: what it leaves, refuses, resumes; interrupted."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from cli_runner import LANDSCAPE, Qra

from qra_search.app.config import load_config
from qra_search.app.folder import RunFolder
from qra_search.log.journal import TrialLog
from qra_search.space.memory import format_bytes


def trials(folder: Path) -> list[tuple[object, ...]]:
    with TrialLog(folder / "trials.jsonl") as log:
        return [(t.proposal, t.status, t.evaluation and t.evaluation.loss) for t in log]


def test_the_config_in_the_folder_is_the_resolved_one(qra: Qra, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "evaluator: landscape\nsearch: {seed: 3, evaluations: 6, strategy: random}\noptions: {layers: 4}\n"
    )
    assert qra("search", file, "--seed", 5, "--set", "options.noise=0", "--out", tmp_path / "a").status == 0
    config = load_config(tmp_path / "a" / "config.yaml")
    assert (config.search.seed, config.search.evaluations) == (5, 6)
    assert config.options == {"layers": 4, "noise": 0}


def test_json_is_all_that_goes_to_stdout_and_nothing_goes_to_stderr(qra: Qra, tmp_path: Path) -> None:
    done = qra.search(tmp_path / "a", "--json")
    assert done.err == ""
    written = RunFolder(tmp_path / "a").read().result.to_dict()
    assert {k: done.json[k] for k in written} == written


def test_a_search_leaves_all_its_files_and_its_plain_progress_goes_to_stderr(
    qra: Qra, tmp_path: Path
) -> None:
    done = qra.search(tmp_path / "a")
    names = {"config.yaml", "trials.jsonl", "sensitivities.json", "plan.json", "report.html"}
    assert done.status == 0 and names <= {file.name for file in (tmp_path / "a").iterdir()}
    assert all(
        words in done.out for words in ("within", "uniform 3 bits, rank 8", "qra show", "qra finetune")
    )
    assert "uniform" in done.err and "loss" in done.err
    assert "\x1b" not in done.err + done.out


def test_without_out_a_new_folder_is_made_each_time(
    qra: Qra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("search", *LANDSCAPE, "--strategy", "random", "-n", 4, "--json")
    assert [qra(*command).json["folder"] for _ in range(2)] == ["runs/landscape", "runs/landscape-2"]


def test_a_dry_run_says_what_would_be_and_spends_nothing(qra: Qra, tmp_path: Path) -> None:
    facts = qra.search(tmp_path / "a", "--dry-run", "--json").json
    text = qra.search(tmp_path / "a", "--dry-run")
    assert not (tmp_path / "a").exists()
    qra.search(tmp_path / "a")
    space = RunFolder(tmp_path / "a").read().result.space
    assert facts["groups"] == len(space) == 4
    assert facts["smallest_bytes"] == space.memory.minimum
    assert facts["largest_bytes"] == space.memory.maximum
    assert facts["config"]["evaluator"] == "landscape"
    assert format_bytes(space.memory.minimum) in text.out
    assert "Nothing was run" in text.out


def test_a_resumed_search_goes_on_with_more_evaluations_as_if_it_had_been_asked_at_once(
    qra: Qra, tmp_path: Path
) -> None:
    qra.search(tmp_path / "a", evaluations=6)
    count = len(trials(tmp_path / "a"))
    left = 14 - RunFolder(tmp_path / "a").read().result.spent
    assert qra("search", tmp_path / "a", "-n", 14, "--dry-run", "--json").json[
        "evaluations"
    ] == pytest.approx(left)
    more = qra("search", tmp_path / "a", "-n", 14)
    assert more.status == 0
    assert f"resumed: {count} trials, " in more.err and " of 14 evaluations spent, " in more.err
    qra.search(tmp_path / "b", evaluations=14)
    assert trials(tmp_path / "a") == trials(tmp_path / "b")
    assert "none left: give more with --evaluations" in qra("search", tmp_path / "b", "--dry-run").out


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C as a landscape's evaluation of that number begins."""
    from qra_eval.evaluators.landscape import Landscape

    evaluate, count = Landscape.evaluate, iter(range(100))

    def interrupted(self: Landscape, *args: Any, **options: Any) -> Any:
        if next(count) == at:
            signal.raise_signal(signal.SIGINT)
        return evaluate(self, *args, **options)

    monkeypatch.setattr(Landscape, "evaluate", interrupted)


def test_ctrl_c_before_anything_was_begun_is_said(
    qra: Qra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qra_search.app.cli import search

    monkeypatch.setattr(search, "require_budget", lambda config: signal.raise_signal(signal.SIGINT))
    stopped = qra("plan", "--model", "tiny", "--task", "arithmetic", "--memory", "75%", "--dry-run")
    assert stopped.status == 130 and stopped.err.strip() == "qra: stopped"


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(
    qra: Qra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, 3)
    stopped = qra.search(tmp_path / "a")
    assert stopped.status == 130 and "Traceback" not in stopped.err
    assert f"Resume: qra search {tmp_path / 'a'}" in stopped.err
    assert [status for _, status, _ in trials(tmp_path / "a")] == ["done"] * 3 + ["running"]
    assert qra("search", tmp_path / "a").status == 0


def test_an_unexpected_error_is_one_line_and_says_how_to_see_more(
    qra: Qra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qra_search.strategies.simple import RandomStrategy

    def broken(*args: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(RandomStrategy, "propose", broken)
    done = qra.search(tmp_path / "a", "--json")
    assert done.status == 1
    assert done.err == "qra: ZeroDivisionError: division by zero (set QRA_TRACEBACK=1 to see where)\n"
    monkeypatch.setenv("QRA_TRACEBACK", "1")
    assert "Traceback" in qra.search(tmp_path / "b", "--json").err
