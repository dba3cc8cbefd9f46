"""The log keeps what it was told, across processes and kills, and refuses what is not its own."""

from __future__ import annotations

import sqlite3

import pytest

from qra_search import Evaluation, Plan, Proposal, TrialLog
from qra_search.log.trial_log import LogMismatch

PLAN = Plan((2, 3), (4, 8))


def test_a_log_reads_back_what_was_written(tmp_path):
    path = tmp_path / "trials.sqlite"
    with TrialLog(path) as log:
        log.propose(Proposal(PLAN, 0.5, 3, "sweep", 1.5, 0.1))
        log.propose(Proposal(PLAN, 1.0, 3))
        log.propose(Proposal(PLAN, 1.0, 4))
        log.finish(0, Evaluation(1.25, 77, {"acc": 0.5}, 2.0, 0.5, 3))
        log.fail(1, "out of memory")
        written = log.trials
    with TrialLog(path) as log:
        assert log.trials == written
        assert [t.status for t in log] == ["done", "failed", "running"]
        assert [t.id for t in log.running] == [2]
        assert log.trials[0].proposal.predicted_loss == 1.5
        assert log.trials[1].reason == "out of memory"


def test_a_result_counts_once():
    log = TrialLog()
    log.propose(Proposal(PLAN))
    log.finish(0, Evaluation(1.0, 1))
    with pytest.raises(ValueError, match="a result counts once"):
        log.finish(0, Evaluation(0.5, 1))


def test_a_log_of_another_search_is_refused_with_both_values(tmp_path):
    path = tmp_path / "trials.sqlite"
    with TrialLog(path) as log:
        log.bind(seed=1, evaluator={"model": "a", "steps": 3})
    with TrialLog(path) as log:
        log.bind(seed=1)
        with pytest.raises(LogMismatch, match=r"evaluator model = 'a', but now it is 'b'"):
            log.bind(seed=1, evaluator={"model": "b", "steps": 3})


def test_a_file_that_is_no_log_is_refused(tmp_path):
    path = tmp_path / "trials.sqlite"
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(LogMismatch, match="not a readable trial log"):
        TrialLog(path)


def test_a_log_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "trials.sqlite"
    TrialLog(path).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    with pytest.raises(LogMismatch, match="log version 99"):
        TrialLog(path)
