"""`qra log check` lists what is damaged; other commands skip it and say so."""

from __future__ import annotations

from pathlib import Path

import pytest
from logs import write_log

from qra_search import TrialLog
from qra_search.cli.errors import run_safely


def damage(path: Path, trial: int) -> None:
    """Change the loss of a trial in its log."""
    with TrialLog(path) as log:
        loss = log.trials[trial].loss
    path.write_bytes(path.read_bytes().replace(f'"loss":{loss!r}'.encode(), b'"loss":0.5'))


def qra(*arguments: object) -> int:
    return run_safely([str(a) for a in arguments])


def test_a_sound_log_is_reported_so(tmp_path, capsys):
    write_log(tmp_path / "trials.jsonl").close()
    for path in (tmp_path, tmp_path / "trials.jsonl"):
        assert qra("log", "check", path) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'trials.jsonl'}: sound, 12 done\n"


def test_the_lines_that_are_damaged_are_listed(tmp_path, capsys):
    path = tmp_path / "trials.jsonl"
    write_log(path).close()
    damage(path, 5)
    damage(path, 8)
    assert qra("log", "check", path) == 1
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        f"{path}: damaged, 10 done, 2 running",
        "line 15: its checksum is wrong",
        "line 21: its checksum is wrong",
    ]
    assert not told.err


def test_other_commands_go_on_and_say_in_one_line_what_was_skipped(tmp_path, capsys):
    path = tmp_path / "trials.jsonl"
    write_log(path).close()
    damage(path, 5)
    for command in ("show", "report"):
        assert qra(command, tmp_path) == 0
        told = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
        assert told == [
            f"qra: {path} is damaged, line 15 was skipped: its checksum is wrong; `qra log check` lists all"
        ]


def test_a_log_that_is_not_there_is_said_so_and_not_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert qra("log", "check", "none") == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "none does not exist" in told[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"SQLite format 3\0", b'{"format":"qra-log/2"}\n'])
def test_a_file_that_is_no_log_is_refused_in_one_line(tmp_path, capsys, content):
    (tmp_path / "log").write_bytes(content)
    assert qra("log", "check", tmp_path / "log") == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "is not a readable trial log" in told[0]
