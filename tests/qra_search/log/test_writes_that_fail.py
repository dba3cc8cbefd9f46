"""A log that cannot be written, or whose writer was cut off, is read whole, and the next one goes on."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from fakes import AdditiveEvaluator
from logs import OPTIONS, kill_a_search, run_in_child, write_log

from qra_search import Proposal, TrialLog, search
from qra_search.errors import RunFailed, TornLine
from qra_search.log.journal import LogError


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
        "cannot be written (permission denied): give an output folder that can be" in text
        for text in refusals
    )


@pytest.mark.parametrize("short", [True, False])
def test_a_write_that_fails_leaves_the_log_whole_and_the_next_one_goes_on(tmp_path, monkeypatch, short):
    path, write = tmp_path / "log", os.write
    log = write_log(path, 4)
    before = path.read_bytes()

    def full(file: int, data: bytes) -> int:
        written = write(file, data[: len(data) // 2])
        if short:
            return written
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(
        RunFailed, match="cannot be written .*make room on its disk and resume with the same log"
    ):
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
    with pytest.warns(TornLine, match="log: the last line was broken off and is dropped"):
        result = search(AdditiveEvaluator(), **{**OPTIONS, "evaluations": 20}, log=path)
    unbroken = search(AdditiveEvaluator(), **{**OPTIONS, "evaluations": 20})
    assert [(t.proposal, t.loss) for t in result.trials] == [(t.proposal, t.loss) for t in unbroken.trials]
    assert TrialLog(path).trials == result.trials


@pytest.mark.parametrize(
    ("code", "says"), [(28, "make room on its disk"), (5, "cannot be written (input/output")]
)
def test_room_on_the_disk_is_advised_only_if_it_is_full(tmp_path, monkeypatch, code, says):
    log = write_log(tmp_path / "log", 4)

    def fail(file: int, data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(RunFailed) as caught:
        log.propose(Proposal(log.trials[0].plan, seed=5))
    assert says in str(caught.value) and ("make room" in str(caught.value)) == (code == 28)
