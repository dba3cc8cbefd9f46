"""The log keeps what it was told, across processes and kills, and refuses what is not its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fakes import AdditiveEvaluator
from logs import OPTIONS, kill_a_search, run_in_child, write_log

from qra_search import Evaluation, Plan, Proposal, Study, TrialLog, search
from qra_search.errors import EvaluationFailed, RunFailed, TornLineWarning
from qra_search.log.journal import LogError

PLAN = Plan((2, 3), (4, 8))


def rows(path: Path) -> list[dict]:
    return [json.loads(row) for row in path.read_text().splitlines()]


def test_a_log_reads_back_what_was_written(tmp_path):
    path = tmp_path / "trials.jsonl"
    with TrialLog(path) as log:
        log.propose(Proposal(PLAN, 0.5, 3, "sweep", 1.5))
        log.propose(Proposal(PLAN, 1.0, 3))
        log.propose(Proposal(PLAN, 1.0, 4))
        log.finish(0, Evaluation(1.25, 77, {"acc": 0.5, "top": float("inf")}, 2.0, 0.5, 3))
        log.fail(1, "out of memory")
        written = log.trials
    with TrialLog(path) as log:
        assert log.trials == written
        assert [t.status for t in log] == ["done", "failed", "running"]
        assert [t.id for t in log.running_trials] == [2]
        assert log.trials[0].proposal.predicted_loss == 1.5
        assert log.trials[0].evaluation.metrics["top"] == float("inf")
        assert log.trials[1].reason == "out of memory"


def test_a_search_writes_its_header_first(tmp_path):
    write_log(tmp_path / "log", 3)
    first, *others = rows(tmp_path / "log")
    assert first["format"] == "qra-log/5"
    assert {"space", "evaluator", "budgets", "seed"} <= set(first["header"])
    trials = [trial for row in others for trial in row.get("trials", ())]
    assert [(t["id"], t.get("status")) for t in trials] == [
        (i, status) for i in range(3) for status in (None, "done")
    ]


def test_a_log_that_nothing_was_written_to_is_no_file_and_a_folder_is_no_log(tmp_path):
    with TrialLog(tmp_path / "log") as log:
        assert len(log) == 0 and log.get_meta("space") is None
    assert not list(tmp_path.iterdir())
    with pytest.raises(LogError, match="cannot be read"):
        TrialLog(tmp_path)


def test_a_result_counts_once():
    log = TrialLog()
    log.propose(Proposal(PLAN))
    log.finish(0, Evaluation(1.0, 1))
    with pytest.raises(ValueError, match="already has its result"):
        log.finish(0, Evaluation(0.5, 1))


def test_a_log_of_another_search_is_refused_with_both_values(tmp_path):
    path = tmp_path / "trials.jsonl"
    with TrialLog(path) as log:
        log.bind(seed=1, evaluator={"model": "a", "steps": 3})
    with TrialLog(path) as log:
        log.bind(seed=1)
        with pytest.raises(LogError, match=r"evaluator.model = 'a', but now it is 'b'"):
            log.bind(seed=1, evaluator={"model": "b", "steps": 3})


def test_a_second_search_on_a_log_is_refused_until_the_first_has_ended(tmp_path):
    path = tmp_path / "log"
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        f"from fakes import AdditiveEvaluator\nfrom qra_search import Study\n"
        f"study = Study(AdditiveEvaluator(), strategy='random', log={str(path)!r})\n"
        f"print('held', flush=True)\ntime.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LogError, match="being written by another process: wait for it"):
            Study(AdditiveEvaluator(), strategy="random", log=path)
        with TrialLog(path) as log:
            assert len(log) == 0, "reading is open to everyone"
    finally:
        process.kill()
        process.wait()
    assert search(AdditiveEvaluator(), **OPTIONS, log=path).trials, (
        "the kernel frees the lock of a killed process"
    )


def test_a_writer_sees_what_another_wrote_since_it_opened_the_log(tmp_path):
    log = write_log(tmp_path / "log", 3)
    other = write_log(tmp_path / "log", 5)
    other.close()
    trial = log.propose(Proposal(log.trials[0].plan, seed=77))
    assert trial.id == 5 and len(log) == 6


def test_a_result_is_kept_in_plain_numbers_and_a_loss_that_is_not_finite_is_none(tmp_path):
    with TrialLog(tmp_path / "log") as log:
        for _ in range(2):
            log.propose(Proposal(Plan((2,), (4,))))
        log.finish(0, Evaluation(np.float32(1.5), np.int64(7), {"odd": np.float32("nan")}))
        with pytest.raises(EvaluationFailed, match="loss is nan"):
            log.finish(1, Evaluation(float("nan"), 7))
    (trial, _) = TrialLog(tmp_path / "log").trials
    assert (type(trial.loss), trial.loss) == (float, 1.5) and np.isnan(trial.evaluation.metrics["odd"])


@pytest.mark.parametrize("closed", ["folder", "file"])
def test_a_log_that_cannot_be_written_is_read_whole(closed):
    def work() -> str:
        log = TrialLog(path)
        lines = [f"{len(log)} {log.trials[-1].status}"]
        for refused in [log, TrialLog(f"{path}-new")] if closed == "folder" else [log]:
            with pytest.raises(LogError) as caught:
                refused.bind({"a": 1})
            lines.append(str(caught.value))
        return "\n".join(lines)

    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        path = folder / "log"
        kill_a_search(path)
        before = path.read_bytes()
        for file in folder.iterdir():
            file.chmod(0o444)
        folder.chmod(0o555 if closed == "folder" else 0o777)
        # Root may write anything.
        whole, *refusals = run_in_child(lambda: os.getuid() or os.setuid(65534), work).splitlines()
        folder.chmod(0o755)
        assert path.read_bytes() == before
    assert whole == "12 done" and len(refusals) == (2 if closed == "folder" else 1)
    assert all(
        "cannot be written (permission denied): give another output folder" in text for text in refusals
    )


@pytest.mark.parametrize("short", [True, False])
def test_a_write_that_fails_leaves_the_log_whole_and_the_next_one_goes_on(tmp_path, monkeypatch, short):
    path, write = tmp_path / "log", os.pwrite
    log = write_log(path, 4)
    before = path.read_bytes()

    def full(file: int, data: bytes, at: int) -> int:
        written = write(file, data[: len(data) // 2], at)
        if short:
            return written
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunFailed, match="cannot be written .*fix the cause, and resume with the same log"):
        log.propose(Proposal(log.trials[0].plan, seed=5))
    assert path.read_bytes() == before and len(log) == 4
    monkeypatch.undo()
    log.propose(Proposal(log.trials[0].plan, seed=5))
    log.close()
    assert len(TrialLog(path)) == 5


def test_a_log_that_is_taken_away_stops_the_search(tmp_path):
    log = write_log(tmp_path / "log", 4)
    log.propose(Proposal(log.trials[0].plan, seed=5))
    (tmp_path / "log").unlink()
    with pytest.raises(RunFailed, match="the file was removed"):
        log.fail(4, "x")


def test_what_a_killed_writer_had_begun_is_dropped_by_the_next_which_says_so(tmp_path):
    path = tmp_path / "log"
    kill_a_search(path)
    assert len(TrialLog(path)) == 12
    with pytest.warns(TornLineWarning, match="log: the last line is incomplete and is dropped"):
        result = search(AdditiveEvaluator(), **{**OPTIONS, "evaluations": 20}, log=path)
    unbroken = search(AdditiveEvaluator(), **{**OPTIONS, "evaluations": 20})
    assert [(t.proposal, t.loss) for t in result.trials] == [(t.proposal, t.loss) for t in unbroken.trials]
    assert TrialLog(path).trials == result.trials
