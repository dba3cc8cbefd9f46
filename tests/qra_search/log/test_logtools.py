"""Logs are checked and merged, in Python and from the command line."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from fakes import AdditiveEvaluator, make_space
from logs import OPTIONS, write_log

from qra_search import Evaluation, Proposal, TrialLog, search
from qra_search.cli.errors import run_safely
from qra_search.log.errors import LogMismatch, LogUnwritable
from qra_search.log.logtools import check, merge
from qra_search.log.logtools import write_log as write_new


def damage(path, trial: int) -> None:
    """Change the loss of a trial in its log."""
    with TrialLog(path) as log:
        loss = log.trials[trial].loss
    path.write_bytes(path.read_bytes().replace(f'"loss":{loss!r}'.encode(), b'"loss":0.5'))


def test_a_sound_log_is_reported_so(tmp_path):
    write_log(tmp_path / "log").close()
    report = check(tmp_path / "log")
    assert report.ok and report.lines() == [f"{tmp_path / 'log'}: sound, 12 done"]


def test_merged_runs_count_an_evaluation_once(tmp_path):
    first, second = (write_log(tmp_path / f"log{seed}", 8, seed=seed) for seed in (0, 1))
    shared = replace(first.trials[2].proposal)
    trial = second.propose(shared)
    second.finish(trial.id, Evaluation(99.0, first.trials[2].evaluation.memory_bytes))
    second.propose(Proposal(first.trials[0].plan, seed=1234))
    assert merge([first.path, second.path], tmp_path / "all") == 16
    with TrialLog(tmp_path / "all") as log:
        assert [t.proposal for t in log][:8] == [t.proposal for t in first]
        assert [t.id for t in log] == list(range(16))
        assert log.trials[2].loss == first.trials[2].loss and not log.running
        assert log.meta("seed") == 0


def test_a_merged_log_is_resumed(tmp_path):
    log = write_log(tmp_path / "log")
    merge([log.path], tmp_path / "again")
    result = search(AdditiveEvaluator(), **{**OPTIONS, "evaluations": 15}, log=tmp_path / "again")
    assert result.trials[:12] == log.trials and len(result.trials) == 15


def test_runs_of_different_spaces_are_not_merged(tmp_path):
    write_log(tmp_path / "a").close()
    search(AdditiveEvaluator(make_space(groups=3)), **OPTIONS, log=tmp_path / "b")
    with pytest.raises(LogMismatch, match="has another space than"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_log_is_not_written_over_a_file_that_is_there(tmp_path):
    write_log(tmp_path / "a").close()
    (tmp_path / "all").write_text("mine")
    with pytest.raises(LogMismatch, match="exists already"):
        merge([tmp_path / "a"], tmp_path / "all")
    assert (tmp_path / "all").read_text() == "mine"


def test_a_new_log_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LogUnwritable, match="no space left on device"):
        write_new(tmp_path / "log", {"seed": 1}, ())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tool", [lambda p: check(p), lambda p: merge([p], p.with_name("all"))])
def test_a_log_that_is_not_there_is_said_so_and_not_made(tmp_path, tool):
    with pytest.raises(LogMismatch, match="does not exist"):
        tool(tmp_path / "none")
    assert not list(tmp_path.iterdir())


# -- the commands -----------------------------------------------------------------------------------


def qra(*arguments: object) -> int:
    return run_safely([str(a) for a in arguments])


def test_the_log_commands_check_and_merge_runs(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    write_log(run / "trials.jsonl").close()
    assert qra("log", "merge", run, run / "trials.jsonl", "--out", tmp_path / "b" / "trials.jsonl") == 0
    assert qra("log", "check", tmp_path / "b") == 0
    assert "12 trials of 2 logs merged" in capsys.readouterr().out
    with TrialLog(run / "trials.jsonl") as one, TrialLog(tmp_path / "b" / "trials.jsonl") as two:
        assert one.trials == two.trials


def test_the_check_command_lists_what_is_damaged(tmp_path, capsys):
    path = tmp_path / "trials.jsonl"
    write_log(path).close()
    damage(path, 5)
    damage(path, 8)
    assert qra("log", "check", path) == 1
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        f"{path}: damaged, 10 done, 2 running",
        "line 15: it is not what was written",
        "line 21: it is not what was written",
    ]
    assert not told.err


def test_other_commands_go_on_and_say_in_one_line_what_was_left_out(tmp_path, capsys):
    path = tmp_path / "trials.jsonl"
    write_log(path).close()
    damage(path, 5)
    for command in ("show", "report"):
        assert qra(command, tmp_path) == 0
        told = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
        assert told == [
            f"qra: {path} is damaged, and read without line 15: it is not what was written; `qra log check` lists all"
        ]


@pytest.mark.parametrize("arguments", [("check", "none"), ("convert", "none"), ("merge", "none", "--out", "x")])
def test_a_log_command_on_nothing_answers_in_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert qra("log", *arguments) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "none" in told[0]
    assert not list(tmp_path.iterdir())
