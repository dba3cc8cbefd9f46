"""Logs of older versions are read once, whole, or refused in one line."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from logs import write_log

from qra_search import TrialLog
from qra_search.cli.errors import run_safely
from qra_search.log.convert import convert
from qra_search.log.errors import LogDamaged
from qra_search.runs.folder import NoRun, RunFolder

TABLES = {
    1: """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE trials (id INTEGER PRIMARY KEY, plan TEXT NOT NULL, fidelity REAL NOT NULL, seed INTEGER NOT NULL,
    origin TEXT NOT NULL, predicted TEXT NOT NULL, status TEXT NOT NULL, result TEXT, reason TEXT,
    proposed_at REAL NOT NULL, finished_at REAL);
INSERT INTO meta VALUES ('schema_version', '1'), ('seed', '3');
""",
    2: """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum TEXT);
CREATE TABLE trials (id INTEGER PRIMARY KEY, plan TEXT NOT NULL, fidelity REAL NOT NULL, seed INTEGER NOT NULL,
    origin TEXT NOT NULL, predicted TEXT NOT NULL, status TEXT NOT NULL, result TEXT, reason TEXT,
    proposed_at REAL NOT NULL, finished_at REAL, proposal_sum TEXT, result_sum TEXT);
INSERT INTO meta VALUES ('schema_version', '2', ''), ('seed', '3', '');
""",
}
DONE = '{"loss": 1.5, "memory_bytes": 7, "metrics": {"a": NaN}}'
ROWS = [
    (0, "2,3|4,8", 1.0, 3, "x", "[null, 0.5]", "done", DONE, "", 1.0, 2.0),
    (1, "2,2|4,8", 0.5, 3, "x", "[1.0, 0.5]", "running", None, None, 3.25, None),
    (2, "3,2|4,8", 1.0, 3, "x", "[1.0, 0.5]", "failed", None, "out of memory", 3.5, 4.0),
]  # fmt: skip


def old_log(path: Path, version: int = 2) -> Path:
    with sqlite3.connect(path) as db:
        db.executescript(TABLES[version])
        db.executemany(f"INSERT INTO trials VALUES ({', '.join('?' * (9 + 2 * version))})", [
            (*row, *[""] * (2 * version - 2)) for row in ROWS
        ])  # fmt: skip
    db.close()
    return path


@pytest.mark.parametrize("version", [1, 2])
def test_an_sqlite_log_is_converted_with_all_it_holds(tmp_path, version):
    assert convert(old_log(tmp_path / "old", version), tmp_path / "new") == 3
    with TrialLog(tmp_path / "new") as log:
        assert [(t.id, t.status, t.plan.bits, t.fidelity) for t in log] == [
            (0, "done", (2, 3), 1.0),
            (1, "running", (2, 2), 0.5),
            (2, "failed", (3, 2), 1.0),
        ]
        assert log.trials[0].loss == 1.5 and log.trials[1].proposal.predicted_loss == 1.0
        assert log.trials[2].reason == "out of memory" and log.trials[1].proposed_at == 3.25
        assert log.meta("seed") == 3 and log.meta("schema_version") is None


def test_what_is_damaged_or_no_old_log_is_refused(tmp_path):
    old = old_log(tmp_path / "old")
    content = bytearray(old.read_bytes())
    content[4096:6000] = bytes(1904)
    old.write_bytes(content)
    with pytest.raises(LogDamaged, match="not a readable log of an older version"):
        convert(old, tmp_path / "new")
    odd = old_log(tmp_path / "odd")
    with sqlite3.connect(odd) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'seed'", (r'"\ud800"',))
    db.close()
    with pytest.raises(LogDamaged, match="not valid UTF-8"):
        convert(odd, tmp_path / "new")
    write_log(tmp_path / "log").close()
    with pytest.raises(LogDamaged, match="not a readable log of an older version"):
        convert(tmp_path / "log", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_with_an_old_log_names_the_command_that_makes_the_new_one(tmp_path, capsys):
    old_log(tmp_path / "trials.sqlite")
    with pytest.raises(NoRun, match=f"`qra log convert {tmp_path}` makes a new one"):
        RunFolder(tmp_path).check()
    for command in (
        ["show", str(tmp_path)],
        ["search", "--evaluator", "landscape", "--resume", "--out", str(tmp_path)],
    ):
        assert run_safely(command) == 2
        assert "qra log convert" in capsys.readouterr().err
    assert run_safely(["log", "convert", str(tmp_path)]) == 0
    assert "3 trials" in capsys.readouterr().out
    assert len(TrialLog(RunFolder(tmp_path).check().log_file)) == 3
