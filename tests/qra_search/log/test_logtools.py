"""The log: one writer, and a way in and out of other formats."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import AdditiveEvaluator, make_space
from logs import OPTIONS, open_wal_log, write_log

from qra_search import Evaluation, Proposal, Study, TrialLog, search
from qra_search.log.locks import Locked, WriterLock
from qra_search.log.logtools import check, export_jsonl, export_parquet, import_jsonl, merge
from qra_search.log.trial_log import LogBusy, LogDamaged, LogMismatch, LogReadOnly

# -- one writer ------------------------------------------------------------------------------------


def test_a_second_search_on_a_log_is_refused_and_told_who_holds_it(tmp_path):
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
        with pytest.raises(LogBusy, match=f"being written by process {process.pid} on .*, since .*: wait for it"):
            Study(AdditiveEvaluator(), strategy="random", log=path)
        with TrialLog(path) as log:
            assert len(log) == 0, "reading is open to everyone"
        assert f"process {process.pid}" in check(path).lines()[-1]
    finally:
        process.kill()
        process.wait()
    assert search(AdditiveEvaluator(), **OPTIONS, log=path).trials, "the kernel frees the lock of a killed process"


def test_two_writers_in_one_process_are_refused_too(tmp_path):
    with TrialLog(tmp_path / "log") as first:
        first.set_meta("a", 1)
        second = TrialLog(tmp_path / "log")
        with pytest.raises(LogBusy):
            second.set_meta("a", 2)
        first.release()
        second.set_meta("a", 3)
        assert first.meta("a") == 3
        second.close()


def test_a_writer_sees_what_another_wrote_since_it_opened_the_log(tmp_path):
    log = write_log(tmp_path / "log", 3)
    other = write_log(tmp_path / "log", 5)
    other.close()
    trial = log.propose(Proposal(log.trials[0].plan, seed=77))
    assert trial.id == 5 and len(log) == 6


def test_a_forked_child_does_not_keep_the_lock_of_a_dead_parent(tmp_path):
    lock = WriterLock(tmp_path / "lock")
    lock.acquire()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)  # until the parent is done
        os._exit(0)
    os.close(read)
    with pytest.raises(Locked, match=f"process {os.getpid()}"):
        WriterLock(tmp_path / "lock").acquire()
    lock.release()
    second = WriterLock(tmp_path / "lock")
    second.acquire()
    second.release()
    os.close(write)
    os.waitpid(child, 0)


def test_a_batch_is_logged_as_a_whole_or_not_at_all(tmp_path):
    plans = [p for p in make_space().uniform_plans()[:3]]
    with TrialLog(tmp_path / "log") as log:
        with pytest.raises(TypeError):
            log.propose_all([Proposal(plans[0]), Proposal(plans[1], predicted_loss=object())])  # type: ignore
        assert len(log) == 0
        assert [t.id for t in log.propose_all([Proposal(p) for p in plans])] == [0, 1, 2]
    assert len(TrialLog(tmp_path / "log")) == 3


# -- versions --------------------------------------------------------------------------------------

_VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE trials (id INTEGER PRIMARY KEY, plan TEXT NOT NULL, fidelity REAL NOT NULL, seed INTEGER NOT NULL,
    origin TEXT NOT NULL, predicted TEXT NOT NULL, status TEXT NOT NULL, result TEXT, reason TEXT,
    proposed_at REAL NOT NULL, finished_at REAL);
INSERT INTO meta VALUES ('schema_version', '1'), ('seed', '3');
INSERT INTO trials
    VALUES (0, '2,3|4,8', 1, 3, 'x', '[null, 0.5]', 'done', '{"loss": 1.5, "memory_bytes": 7}', '', 1, 2);
INSERT INTO trials VALUES (1, '2,2|4,8', 0.5, 3, 'x', '[1.0, 0.5]', 'running', NULL, NULL, 3.25, NULL);
"""


def test_a_log_of_the_first_version_is_brought_up_to_date_with_all_it_holds(tmp_path):
    path = tmp_path / "log"
    with sqlite3.connect(path) as db:
        db.executescript(_VERSION_1)
    db.close()
    for _ in range(2):  # migrated at the first opening, read as it is at the second
        with TrialLog(path) as log:
            assert [(t.status, t.plan.bits, t.fidelity) for t in log] == [
                ("done", (2, 3), 1.0),
                ("running", (2, 2), 0.5),
            ]
            assert log.trials[0].loss == 1.5 and log.meta("seed") == 3
            assert log.trials[1].proposal.predicted_loss == 1.0
    assert check(path).ok


# -- a folder that cannot be written -----------------------------------------------------------------


def as_nobody(work) -> list[str]:
    """What a function returns in a child process that may write nothing (root may write anything)."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            lines = work()
        except BaseException as error:
            lines = [repr(error)]
        os.write(write, "\n".join(lines).encode())
        os._exit(0)
    os.close(write)
    with open(read) as file:
        lines = file.read().splitlines()
    os.waitpid(child, 0)
    return lines


@pytest.mark.parametrize("left_by", ["closed", "killed"])
def test_a_log_in_a_read_only_folder_is_read_whole_and_not_written(left_by):
    def work() -> list[str]:
        log = TrialLog(path)
        lines = [f"{len(log)} {log.trials[-1].status}"]
        for write in (lambda: log.set_meta("a", 1), lambda: TrialLog(f"{path}-new")):
            with pytest.raises(LogReadOnly) as caught:
                write()
            lines.append(str(caught.value))
        log.close()
        return lines

    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        path = folder / "log"
        write_log(path).close() if left_by == "closed" else open_wal_log(path)
        before = {f.name: f.read_bytes() for f in folder.iterdir()}
        for file in folder.iterdir():
            file.chmod(0o444)
        folder.chmod(0o555)
        lines = as_nobody(work)
        folder.chmod(0o755)
        assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert lines[0] == "12 done"
    assert "cannot be written: give an output folder that can be" in lines[1]
    assert "cannot be made" in lines[2] or "cannot be locked" in lines[2]


# -- in and out ------------------------------------------------------------------------------------


def exported(log: TrialLog) -> list[str]:
    file = io.StringIO()
    export_jsonl(log, file)
    return file.getvalue().splitlines()


def test_an_exported_log_is_imported_as_it_was(tmp_path):
    log = write_log(tmp_path / "log")
    log.fail(log.propose(Proposal(log.trials[0].plan, 0.5, 9)).id, "out of memory")
    log.propose(Proposal(log.trials[0].plan, 0.5, 10))
    assert import_jsonl(exported(log), tmp_path / "again") == 14
    with TrialLog(tmp_path / "again") as again:
        assert again.trials == log.trials
        assert {k: again.meta(k) for k in again.meta_keys()} == {k: log.meta(k) for k in log.meta_keys()}


def test_an_imported_log_is_gone_on_with(tmp_path):
    log = write_log(tmp_path / "log")
    import_jsonl(exported(log), tmp_path / "again")
    result = search(AdditiveEvaluator(), **{**OPTIONS, "evaluations": 15}, log=tmp_path / "again")
    assert result.trials[:12] == log.trials and len(result.trials) == 15


def test_a_parquet_table_has_a_row_a_trial_and_the_header(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    log = write_log(tmp_path / "log")
    log.fail(log.propose(Proposal(log.trials[0].plan, 0.5, 9)).id, "out of memory")
    assert export_parquet(log, tmp_path / "log.parquet") == 13
    table = parquet.read_table(tmp_path / "log.parquet")
    assert table["loss"].to_pylist() == [t.loss if t.done else None for t in log]
    assert [tuple(b) for b in table["bits"].to_pylist()] == [t.plan.bits for t in log]
    assert table["reason"].to_pylist()[-1] == "out of memory"
    assert json.loads(table.schema.metadata[b"qra"])["seed"] == 0


@pytest.mark.parametrize(
    ("line", "change", "says"),
    [
        (0, {"format": "other"}, "line 1 is no header"),
        (0, {"header": {}}, "line 1 holds no search space"),
        (0, {"header": {"space_data": {"groups": 3}}}, "line 1 holds no search space"),
        (2, {"bits": [2]}, "line 3 is no trial"),
        (2, {"bits": [2.5] * 6}, "2.5 is given where a whole number"),
        (2, {"fidelity": 2}, "fidelity is 2"),
        (2, {"status": "perhaps"}, "status is 'perhaps'"),
        (2, {"evaluation": {"loss": "low", "memory_bytes": 1}}, "no number"),
        (2, {"evaluation": {"loss": 1.0, "memory_bytes": 1}}, "1 bytes where the space counts"),
        (2, {"seed": 1 << 70}, "whole number of 64 bits"),
    ],
)
def test_a_line_that_is_wrong_is_named_and_no_log_is_made(tmp_path, line, change, says):
    lines = exported(write_log(tmp_path / "log"))
    lines[line] = json.dumps({**json.loads(lines[line]), **change})
    with pytest.raises(LogMismatch, match=says):
        import_jsonl(lines, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 200_000, '{"format": NaN}'])
def test_a_line_that_is_no_mapping_is_named(tmp_path, text):
    with pytest.raises(LogMismatch, match="line 1 "):
        import_jsonl([text], tmp_path / "again")


def test_merged_runs_count_an_evaluation_once(tmp_path):
    first, second = (write_log(tmp_path / f"log{seed}", 8, seed=seed) for seed in (0, 1))
    shared = replace(first.trials[2].proposal)
    trial = second.propose(shared)
    second.finish(trial.id, Evaluation(99.0, first.trials[2].evaluation.memory_bytes))
    second.propose(Proposal(first.trials[0].plan, seed=1234))
    assert merge([first.path, second.path], tmp_path / "all") == 16
    with TrialLog(tmp_path / "all") as log:
        assert [t.proposal for t in log][:8] == [t.proposal for t in first]
        assert log.trials[2].loss == first.trials[2].loss and not log.running
        assert log.meta("seed") == 0


def test_runs_of_different_spaces_are_not_merged(tmp_path):
    write_log(tmp_path / "a").close()
    search(AdditiveEvaluator(make_space(groups=3)), **OPTIONS, log=tmp_path / "b")
    with pytest.raises(LogMismatch, match="has another space than"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("tool", [lambda p: check(p), lambda p: merge([p], p.with_name("all"))])
def test_a_log_that_is_not_there_is_said_so_and_not_made(tmp_path, tool):
    with pytest.raises(LogMismatch, match="does not exist"):
        tool(tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_clock_that_jumps_changes_nothing_but_the_dates(tmp_path, monkeypatch):
    options = {**OPTIONS, "strategy": "additive"}
    steady = search(AdditiveEvaluator(), **options)
    clock = iter(range(2_000_000_000, 0, -40_000_000))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    jumping = search(AdditiveEvaluator(), **options, log=tmp_path / "log")
    assert [t.proposal for t in jumping.trials] == [t.proposal for t in steady.trials]
    assert TrialLog(tmp_path / "log").trials == jumping.trials


def test_the_lock_is_free_once_a_search_has_ended_however_it_ended(tmp_path):
    class Interrupted(AdditiveEvaluator):
        def evaluate(self, plan, **options):
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().evaluate(plan, **options)

    study = Study(Interrupted(), **OPTIONS, log=tmp_path / "log")
    with pytest.raises(KeyboardInterrupt):
        study.run()
    assert [t.status for t in study.log] == ["done"] * 3 + ["running"]
    result = search(AdditiveEvaluator(), **OPTIONS, log=tmp_path / "log")
    assert [t.proposal for t in result.trials] == [t.proposal for t in search(AdditiveEvaluator(), **OPTIONS).trials]


# -- the command ------------------------------------------------------------------------------------


def qra(*arguments: object) -> int:
    from qra_search.cli.errors import run_safely

    return run_safely([str(a) for a in arguments])


def test_the_log_commands_take_a_run_out_and_back_and_together(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    write_log(run / "trials.sqlite").close()
    assert qra("log", "export", run, "--out", tmp_path / "a.jsonl") == 0
    assert qra("log", "import", tmp_path / "a.jsonl", "--out", tmp_path / "b" / "trials.sqlite") == 0
    assert qra("log", "merge", run, tmp_path / "b", "--out", tmp_path / "all.sqlite") == 0
    assert qra("log", "check", tmp_path / "b") == 0
    assert "12 trials of 2 logs merged" in capsys.readouterr().out
    with TrialLog(run / "trials.sqlite") as one, TrialLog(tmp_path / "b" / "trials.sqlite") as two:
        assert one.trials == two.trials


def test_the_check_command_says_what_is_damaged_and_saves_the_rest(tmp_path, capsys):
    path = tmp_path / "trials.sqlite"
    log = write_log(path)
    mark = path.read_bytes().index(f'"loss": {log.trials[5].loss!r}'.encode()) + 8
    log.close()
    data = bytearray(path.read_bytes())
    data[mark] ^= 1
    path.write_bytes(data)
    assert qra("log", "check", path, "--salvage", tmp_path / "saved" / "trials.sqlite") == 1
    told = capsys.readouterr().out
    assert "trial 5 is not what was written" in told and "lost: 1 results (5)" in told and "12 trials saved" in told
    assert qra("log", "check", tmp_path / "saved") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "none"),
        ("export", "none", "--out", "x"),
        ("import", "none", "--out", "x"),
        ("merge", "none", "--out", "x"),
    ],
)
def test_a_log_command_on_nothing_answers_in_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert qra("log", *arguments) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "none" in told[0]
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("value", ["NULL", "7", "x'00ff'", "'[]'", "'2.5'"])
def test_a_log_whose_version_is_no_number_is_damaged(tmp_path, value):
    path = tmp_path / "log"
    write_log(path).close()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE other (key TEXT PRIMARY KEY, value, checksum)")
        db.execute(f"INSERT INTO other SELECT key, iif(key = 'schema_version', {value}, value), checksum FROM meta")
        db.execute("DROP TABLE meta")
        db.execute("ALTER TABLE other RENAME TO meta")
    with pytest.raises(LogDamaged, match="is not a readable trial log \\(it has no version\\)"):
        TrialLog(path)
