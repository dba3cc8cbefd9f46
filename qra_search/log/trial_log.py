"""The trial log: every proposal and what became of it, in one crash-safe SQLite file; the only state of a search."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from qra_search.errors import BadInput
from qra_search.evaluation.evaluator import Evaluation
from qra_search.log import logformat, walfile
from qra_search.log.locks import Locked, WriterLock, describe_holder
from qra_search.log.logformat import SCHEMA_VERSION
from qra_search.log.trial import Proposal, Status, Trial, from_row, printable, to_row

__all__ = [
    "MEMORY",
    "SCHEMA_VERSION",
    "LogBusy",
    "LogDamaged",
    "LogMismatch",
    "LogReadOnly",
    "LogUnwritable",
    "Proposal",
    "Status",
    "Trial",
    "TrialLog",
]

MEMORY = ":memory:"
NO_FILES = ("disk I/O error", "unable to open database file", "database or disk is full")
"""What SQLite says where it can make no file beside the log, as on a full disk."""
SALVAGE_HINT = ": `qra log check` says what can be saved"


class LogMismatch(BadInput):
    """The log cannot be used as it is; of itself: it belongs to another space, evaluator or version."""


class LogBusy(LogMismatch):
    """Another process writes the log."""


class LogDamaged(LogMismatch):
    """The file is not what was written to it."""


class LogReadOnly(LogMismatch):
    """The file or its folder cannot be written."""


class LogUnwritable(RuntimeError):
    """Writing failed in the middle of a search: the disk is full, or the file was taken away."""


class TrialLog:
    """Trials in the order in which they were proposed.

    Every proposal is committed before it is run, every result before the next proposal is asked for, so a
    kill at any moment loses at most the evaluations in flight, which `running` then names. Any number of
    processes may read; the first write takes a lock that keeps other writers out until `release` or `close`.

    Args:
        path: SQLite file, made when missing; `:memory:` keeps nothing.

    Raises:
        LogDamaged: bytes are not those that were written; `qra_search.log.salvage` saves what can be.
        LogMismatch: the log is of another version.
    """

    def __init__(self, path: str | Path = MEMORY):
        self.path = str(path)
        self._trials: list[Trial] = []
        self._version_seen = -1
        self._lock = WriterLock(f"{self.path}.lock") if self.path != MEMORY else None
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._mend = ""
        try:
            self._db = _connect(self._prepare_file())
            self._open()
        except BaseException:
            self.close()
            raise

    def _prepare_file(self) -> str:
        """The file to open: the log itself, made where it is missing, or a copy of one that cannot be written."""
        if self._lock is None:
            return MEMORY
        path = Path(self.path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                self._acquire_lock()
                logformat.create(path)
        except (OSError, sqlite3.OperationalError) as error:
            raise LogReadOnly(f"{path} cannot be made ({error}): give a folder that can be written") from None
        if not path.is_file() or path.stat().st_size == 0:
            raise LogDamaged(
                f"{path} is {'empty' if path.is_file() else 'not a file'}, which no trial log is: "
                f"move it away or restore a copy"
            )
        return self._copied("give an output folder that can be") if not _writable(path) else self.path

    def _copied(self, mend: str) -> str:
        """A copy of the log elsewhere, since SQLite reads none without files of its own beside it; never written."""
        self._copy, self._mend = tempfile.TemporaryDirectory(prefix="qra-log-"), mend
        path = Path(self.path)
        for file in (path, walfile.wal_path(path)):
            if file.exists():
                shutil.copyfile(file, Path(self._copy.name) / file.name)
        return str(Path(self._copy.name) / path.name)

    def _open(self) -> None:
        try:
            self._read()
        except sqlite3.OperationalError as error:
            if self._lock is None or self._copy is not None or not str(error).startswith(NO_FILES):
                raise self._unreadable(error) from None
            self._db.close()
            self._db = _connect(self._copied(f"make room on its disk ({error})"))
            self._open()
        except (sqlite3.DatabaseError, ValueError) as error:
            if isinstance(error, LogMismatch):
                raise
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> LogDamaged:
        why = " ".join(str(error).split())[:200]
        return LogDamaged(f"{self.path} is not a readable trial log ({why}){SALVAGE_HINT}")

    def _read(self) -> None:
        if self._lock is None:
            logformat.prepare(self._db)
        elif lost := self._lost_pages():
            raise LogDamaged(
                f"{self.path} is damaged: {lost} pages of {walfile.wal_path(self.path).name} cannot be "
                f"read{SALVAGE_HINT}"
            )
        version = logformat.version_of(self._db)
        if version is None or not isinstance(version, int):
            raise LogDamaged(f"{self.path} is not a readable trial log (it has no version){SALVAGE_HINT}")
        if not 1 <= version <= SCHEMA_VERSION:
            raise LogMismatch(f"{self.path} has log version {version}, this qra reads versions up to {SCHEMA_VERSION}")
        if version < SCHEMA_VERSION:
            with self._writing():
                logformat.migrate(self._db)
        self._db.execute("PRAGMA synchronous=FULL")
        self._load()

    def _lost_pages(self) -> int:
        """Pages that were written and cannot be read; 0 while somebody writes, who may be in the middle of one."""
        if self._lock is None or not self._lock.is_free():
            return 0
        lost = walfile.damaged_frames(self.path)
        return lost if lost and self._lock.is_free() else 0

    def _load(self) -> None:
        """Read all trials at one moment, and check every byte of them."""
        self._db.execute("BEGIN")
        try:
            self._version_seen = self._data_version()
            self._check_structure()
            self._trials = [from_row(row) for row in self._checked_rows()]
        finally:
            self._db.execute("COMMIT")

    def _check_structure(self) -> None:
        (fault,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        if fault != "ok":
            raise LogDamaged(f"{self.path} is damaged ({' '.join(str(fault).split())}){SALVAGE_HINT}")
        for key, text, checksum in self._db.execute("SELECT * FROM meta"):
            if checksum != logformat.digest(key, text):
                raise LogDamaged(f"{self.path} is damaged: its header entry {key!r} was changed{SALVAGE_HINT}")

    def _checked_rows(self) -> Iterator[logformat.Row]:
        for expected, row in enumerate(self._db.execute("SELECT * FROM trials ORDER BY id")):
            if row[0] != expected or logformat.intact(row) != (True, True):
                raise LogDamaged(f"{self.path} is damaged: trial {expected} is not what was written{SALVAGE_HINT}")
            yield row

    def _data_version(self) -> int:
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    # -- reading -------------------------------------------------------------------------------
    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials, in order."""
        return tuple(self._trials)

    def __len__(self) -> int:
        return len(self._trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials)

    @property
    def running(self) -> tuple[Trial, ...]:
        """Trials without a result: in flight, or lost with a killed process."""
        return tuple(t for t in self._trials if t.status == "running")

    def meta(self, key: str) -> Any:
        """A value of the log's header; None where there is none."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def meta_keys(self) -> tuple[str, ...]:
        """Names of all entries of the header, in the order in which they were first written."""
        return tuple(row[0] for row in self._db.execute("SELECT key FROM meta ORDER BY rowid"))

    # -- writing -------------------------------------------------------------------------------
    def set_meta(self, key: str, value: Any) -> None:
        """Write a value of the header."""
        with self._writing():
            logformat.write_meta(self._db, key, value)

    def bind(self, **identity: Any) -> None:
        """Write the identity of the search, or check it where the log already has one.

        Raises:
            LogMismatch: a value differs; the message gives both.
        """
        for key, value in identity.items():
            known = self.meta(key)
            value = json.loads(json.dumps(value))
            if known is None:
                self.set_meta(key, value)
            elif known != value:
                raise LogMismatch(
                    f"{self.path} was written with {key} {_difference(known, value)}: "
                    f"use another output folder, or the settings that it was begun with"
                )

    def propose(self, proposal: Proposal) -> Trial:
        """Record a proposal before it is run."""
        return self.propose_all([proposal])[0]

    def propose_all(self, proposals: Sequence[Proposal]) -> list[Trial]:
        """Record several proposals before they are run: after a kill the log has all of them, or none."""
        if not proposals:
            return []
        with self._writing():
            first, now = len(self._trials), time.time()
            trials = [Trial(first + i, proposal, proposed_at=now) for i, proposal in enumerate(proposals)]
            self._insert([to_row(trial) for trial in trials])
            self._trials += trials
        return trials

    def append(self, trials: Iterable[Trial]) -> list[Trial]:
        """Add trials of another log as they are, numbered on from the last one; all of them, or none."""
        with self._writing():
            added = [replace(trial, id=len(self._trials) + i) for i, trial in enumerate(trials)]
            self._insert([to_row(trial) for trial in added])
            self._trials += added
        return added

    def _insert(self, rows: Sequence[logformat.Row]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(f"INSERT INTO trials VALUES ({logformat.PLACES})", rows)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def finish(self, trial_id: int, evaluation: Evaluation) -> Trial:
        """Record the result of a running trial."""
        return self._end(trial_id, "done", evaluation, "")

    def fail(self, trial_id: int, reason: str) -> Trial:
        """Record that a running trial failed, and why."""
        return self._end(trial_id, "failed", None, printable(reason))

    def _end(self, trial_id: int, status: Status, evaluation: Evaluation | None, reason: str) -> Trial:
        with self._writing():
            if self._trials[trial_id].status != "running":
                raise ValueError(f"trial {trial_id} is already {self._trials[trial_id].status}: a result counts once")
            trial = replace(
                self._trials[trial_id],
                status=status,
                evaluation=evaluation,
                reason=reason,
                finished_at=time.time(),
            )
            row = to_row(trial)
            self._db.execute(
                "UPDATE trials SET status = ?, result = ?, reason = ?, finished_at = ?, result_sum = ? WHERE id = ?",
                (*row[6:9], row[10], row[12], trial_id),
            )
            self._trials[trial_id] = trial
        return trial

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock, with what others wrote before it was taken; name the file where writing fails."""
        if self._copy is not None:
            raise LogReadOnly(f"{self.path} cannot be written: {self._mend}")
        if self._acquire_lock() and self._data_version() != self._version_seen and self._version_seen >= 0:
            self._load()
        try:
            yield
        except sqlite3.OperationalError as error:
            raise LogUnwritable(
                f"{self.path} cannot be written ({error}): make room on its disk and go on with the same log; "
                f"what was recorded is kept"
            ) from None

    def _acquire_lock(self) -> bool:
        """Take the writer's lock; False where it was held all along."""
        if self._lock is None or self._lock.held:
            return False
        try:
            self._lock.acquire()
        except Locked as busy:
            raise LogBusy(
                f"{self.path} is being written by {describe_holder(busy.holder)}: wait for it or end it, "
                f"or use another output folder"
            ) from None
        except OSError as error:
            raise LogReadOnly(f"{self.path} cannot be locked for writing ({error}): use another folder") from None
        return True

    def release(self) -> None:
        """Let other processes write; the next write takes the lock again. The file is then whole without its `-wal`."""
        if self._lock is not None and self._lock.held:
            if hasattr(self, "_db"):
                # What cannot be moved now (a reader, a full disk) is moved when the log is next opened.
                with suppress(sqlite3.OperationalError):
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._lock.release()

    def close(self) -> None:
        """Close the file."""
        self.release()
        if hasattr(self, "_db"):
            self._db.close()
        if self._copy is not None:
            self._copy.cleanup()

    def __enter__(self) -> TrialLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _connect(file: str) -> sqlite3.Connection:
    return sqlite3.connect(file, check_same_thread=False, isolation_level=None)


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _difference(known: Any, value: Any) -> str:
    """The first field in which two values differ, as text."""
    if isinstance(known, Mapping) and isinstance(value, Mapping):
        for key in sorted(set(known) | set(value)):
            if known.get(key) != value.get(key):
                return f"{key} = {_difference(known.get(key), value.get(key))}"
    return f"{known!r}, but now it is {value!r}"
