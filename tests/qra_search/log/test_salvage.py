"""Damaged logs: found wherever the damage is, and what is salvaged is true."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from fakes import AdditiveEvaluator
from logs import OPTIONS, open_wal_log, write_log

from qra_search import Study, TrialLog, search
from qra_search.log.logtools import check
from qra_search.log.salvage import examine, salvage
from qra_search.log.trial_log import LogDamaged, LogMismatch
from qra_search.log.walfile import damaged_frames, wal_path


def test_a_sound_log_is_reported_so(tmp_path):
    write_log(tmp_path / "log").close()
    report = check(tmp_path / "log")
    assert report.ok and report.lines() == [f"{tmp_path / 'log'}: sound, 12 done"]


@pytest.mark.parametrize("part", ["database", "write-ahead file"])
def test_damage_anywhere_is_found_or_harmless_and_what_is_salvaged_is_true(tmp_path, part):
    """Flipped bytes, zeroed blocks and cut ends at many places; no outcome may differ from what was written."""
    path, rng = tmp_path / "log", random.Random(part)
    if part == "database":
        write_log(path, 30).close()
    else:
        open_wal_log(path)
    truth = _true_trials(path, tmp_path / "whole")
    target = path if part == "database" else wal_path(path)
    pristine = {file: file.read_bytes() for file in (path, wal_path(path)) if file.exists()}
    found = harmless = 0
    saved = []
    for n in range(60):
        for file, content in pristine.items():
            file.write_bytes(content)
        Path(f"{path}-shm").unlink(missing_ok=True)
        target.write_bytes(_damaged(pristine[target], rng, n))
        evidence = examine(path)
        _assert_true(evidence, truth)
        try:
            with TrialLog(path) as log:
                # A write-ahead file that ends early is a log that was killed earlier.
                assert log.trials == truth[: len(log)] or _is_earlier(log.trials, truth)
                assert part == "write-ahead file" or len(log) == len(truth)
                harmless += 1
        except LogMismatch:
            found += 1
            saved += [len(evidence.rows)] if n % 3 < 2 else []
    assert found > 20 and harmless > 5, (found, harmless)
    assert sum(saved) > 0.9 * len(saved) * len(truth), "nearly all trials can be saved where nothing was cut off"


def _damaged(content: bytes, rng: random.Random, n: int) -> bytes:
    data, at = bytearray(content), rng.randrange(len(content))
    if n % 3 == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif n % 3 == 1:
        data[at : at + 300] = bytes(len(data[at : at + 300]))
    else:
        del data[at:]
    return bytes(data)


def _true_trials(path: Path, copy: Path) -> tuple:
    for file in (path, wal_path(path)):
        if file.exists():
            shutil.copy(file, str(file).replace(str(path), str(copy)))
    with TrialLog(copy) as log:
        return log.trials


def _is_earlier(trials, truth) -> bool:
    return all(t == w or (t.status == "running" and t.proposal == w.proposal) for t, w in zip(trials, truth))  # noqa: B905


def _assert_true(evidence, truth) -> None:
    from qra_search.log.trial import from_row

    for number, row in evidence.rows.items():
        trial = from_row(row)
        assert trial == truth[number] or (trial.status == "running" and trial.proposal == truth[number].proposal)


def test_a_salvaged_search_runs_again_what_was_lost_and_ends_as_an_unbroken_one(tmp_path):
    path = tmp_path / "log"
    truth = write_log(path).trials
    content = path.read_bytes()
    marks = [content.index(f'"loss": {truth[n].loss!r}'.encode()) + 8 for n in (3, 7)]
    data = bytearray(content)
    for mark in marks:
        data[mark] ^= 1
    path.write_bytes(data)
    with pytest.raises(LogDamaged, match="trial 3 is not what was written: `qra log check`"):
        TrialLog(path)
    assert check(path).salvage.results_lost == (3, 7)
    assert "2 results (3, 7)" in check(path).lines()[2]
    found = salvage(path, tmp_path / "saved")
    assert found.trials_lost == () and found.header_lost == ()
    result = search(AdditiveEvaluator(), **OPTIONS, log=tmp_path / "saved")
    assert [(t.proposal, t.loss) for t in result.trials] == [(t.proposal, t.loss) for t in truth]


def test_a_log_without_its_first_page_is_salvaged_whole_and_its_prior_measured_again(tmp_path):
    path = tmp_path / "log"
    truth = write_log(path, 30).trials
    content = path.read_bytes()
    path.write_bytes(bytes(4096) + content[4096:])
    with pytest.raises(LogDamaged, match="not a readable trial log"):
        TrialLog(path)
    salvage(path, tmp_path / "saved")
    with TrialLog(tmp_path / "saved") as log:
        assert log.trials == truth
        log.set_meta("salvaged", {"header_lost": ["prior"]})
        log._db.execute("DELETE FROM meta WHERE key = 'prior'")
    study = Study(AdditiveEvaluator(), **{**OPTIONS, "evaluations": 30}, log=tmp_path / "saved")
    study.run()
    assert study.prior is not None


def test_nothing_is_salvaged_from_what_is_no_log(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(os.urandom(20_000))
    with pytest.raises(LogMismatch, match="nothing can be saved"):
        salvage(path, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("content", [b"", None])
def test_an_empty_file_is_a_damaged_log_and_not_a_new_one(tmp_path, content):
    path = tmp_path / "log"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(LogDamaged, match="no trial log is"):
        TrialLog(path)


def test_a_killed_search_leaves_no_frame_that_counts_as_damaged(tmp_path):
    open_wal_log(tmp_path / "log")
    assert damaged_frames(tmp_path / "log") == 0
    assert check(tmp_path / "log").ok
