"""The trial log: every proposal and what became of it, in one crash-safe SQLite file; the only state of a search."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from qra_search import logformat, walfile
from qra_search.evaluation import Evaluation, EvaluationFailed
from qra_search.locks import Locked, WriterLock, describe_holder
from qra_search.logformat import SCHEMA_VERSION
from qra_search.space import Plan

MEMORY = ":memory:"
MAX_REASON = 4000
SALVAGE_HINT = ": `qra log check` says what can be saved"

Status = Literal["running", "done", "failed"]


@dataclass(frozen=True)
class Proposal:
    """What a strategy asks to be evaluated.

    Attributes:
        origin: why it was proposed (`uniform`, `sweep`, `confirm`, ...), for the record.
        predicted_loss, predicted_std: what the strategy expected, where it has a model.
    """

    plan: Plan
    fidelity: float = 1.0
    seed: int = 0
    origin: str = ""
    predicted_loss: float | None = None
    predicted_std: float | None = None

    @property
    def key(self) -> tuple[str, float, int]:
        """Equal for proposals that would repeat the same evaluation."""
        return self.plan.key, self.fidelity, self.seed


@dataclass(frozen=True)
class Trial:
    """One line of the log. `id` counts from 0 in the order of proposing."""

    id: int
    proposal: Proposal
    status: Status = "running"
    evaluation: Evaluation | None = None
    reason: str = ""
    proposed_at: float = 0.0
    finished_at: float | None = None

    @property
    def plan(self) -> Plan:
        return self.proposal.plan

    @property
    def fidelity(self) -> float:
        return self.proposal.fidelity

    @property
    def seed(self) -> int:
        return self.proposal.seed

    @property
    def done(self) -> bool:
        return self.status == "done"

    @property
    def loss(self) -> float:
        """Observed loss; only of a finished trial."""
        if self.evaluation is None:
            raise ValueError(f"trial {self.id} is {self.status} and has no loss")
        return self.evaluation.loss

    @property
    def charged(self) -> float:
        """Full evaluations that the trial costs; one that runs or failed is charged its fidelity."""
        return self.evaluation.charged if self.evaluation is not None else self.fidelity


class LogMismatch(ValueError):
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
        LogDamaged: bytes are not those that were written; `qra_search.salvage` saves what can be.
        LogMismatch: the log is of another version.
    """

    def __init__(self, path: str | Path = MEMORY):
        self.path = str(path)
        self._trials: list[Trial] = []
        self._version_seen = -1
        self._lock = WriterLock(f"{self.path}.lock") if self.path != MEMORY else None
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        try:
            self._db = sqlite3.connect(self._prepare_file(), check_same_thread=False, isolation_level=None)
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
        if not _writable(path):
            self._copy = tempfile.TemporaryDirectory(prefix="qra-log-")
            for file in (path, walfile.wal_path(path)):
                if file.exists():
                    shutil.copyfile(file, Path(self._copy.name) / file.name)
            return str(Path(self._copy.name) / path.name)
        return self.path

    def _open(self) -> None:
        try:
            if self._lock is None:
                logformat.prepare(self._db)
            elif self._lock.is_free() and (lost := walfile.damaged_frames(self.path)):
                raise LogDamaged(
                    f"{self.path} is damaged: {lost} pages of {walfile.wal_path(self.path).name} cannot be "
                    f"read{SALVAGE_HINT}"
                )
            version = logformat.version_of(self._db)
            if version is None or not isinstance(version, int):
                raise LogMismatch(f"{self.path} is not a readable trial log (it has no version): move it away")
            if not 1 <= version <= SCHEMA_VERSION:
                raise LogMismatch(
                    f"{self.path} has log version {version}, this qra reads versions up to {SCHEMA_VERSION}"
                )
            if version < SCHEMA_VERSION:
                with self._writing():
                    logformat.migrate(self._db)
            self._db.execute("PRAGMA synchronous=FULL")
            self._load()
        except (sqlite3.DatabaseError, ValueError) as error:
            if isinstance(error, LogMismatch):
                raise
            raise LogDamaged(f"{self.path} is not a readable trial log ({error}){SALVAGE_HINT}") from None

    def _load(self) -> None:
        """Read all trials at one moment, and check every byte of them."""
        self._db.execute("BEGIN")
        try:
            self._version_seen = self._data_version()
            self._check_structure()
            self._trials = [_from_row(row) for row in self._checked_rows()]
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
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._insert(trials)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._trials += trials
        return trials

    def _insert(self, trials: Sequence[Trial]) -> None:
        rows = (_to_row(trial) for trial in trials)
        self._db.executemany(f"INSERT INTO trials VALUES ({logformat.PLACES})", rows)

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
            row = _to_row(trial)
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
            raise LogReadOnly(f"{self.path} cannot be written: give an output folder that can be")
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
        """Let other processes write; the next write takes the lock again."""
        if self._lock is not None:
            self._lock.release()

    def close(self) -> None:
        """Close the file."""
        if hasattr(self, "_db"):
            self._db.close()
        self.release()
        if self._copy is not None:
            self._copy.cleanup()

    def __enter__(self) -> TrialLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def plain(evaluation: Evaluation) -> Evaluation:
    """The evaluation in plain numbers, which every log and every process can hold.

    Raises:
        EvaluationFailed: a field is no number, or its cost is not finite and at least 0.
    """
    try:
        made = Evaluation(
            float(evaluation.loss),
            int(evaluation.memory_bytes),
            {str(name): float(value) for name, value in evaluation.metrics.items()},
            float(evaluation.seconds),
            float(evaluation.fidelity),
            int(evaluation.seed),
            None if evaluation.cost is None else float(evaluation.cost),
        )
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise EvaluationFailed(f"the evaluation holds what is no number ({error})") from None
    if not (math.isfinite(made.charged) and made.charged >= 0):
        raise EvaluationFailed(f"the evaluation costs {made.charged} full evaluations, a number from 0 up is needed")
    return made


def printable(text: str) -> str:
    """Text that can be stored: valid UTF-8, of bounded length."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + f"... ({len(text)} characters)"


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _to_row(trial: Trial) -> logformat.Row:
    proposal, evaluation = trial.proposal, trial.evaluation
    result = None if evaluation is None else json.dumps(evaluation_to_dict(evaluation))
    return logformat.sealed(
        (
            trial.id,
            proposal.plan.key,
            float(proposal.fidelity),
            int(proposal.seed),
            proposal.origin,
            json.dumps([proposal.predicted_loss, proposal.predicted_std]),
            trial.status,
            result,
            None if trial.status == "running" else trial.reason,
            trial.proposed_at,
            trial.finished_at,
        )
    )


def evaluation_to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The fields of an evaluation as plain data; `Evaluation(**data)` is the inverse."""
    return {
        "loss": evaluation.loss,
        "memory_bytes": int(evaluation.memory_bytes),
        "metrics": dict(evaluation.metrics),
        "seconds": evaluation.seconds,
        "fidelity": evaluation.fidelity,
        "seed": evaluation.seed,
        "cost": evaluation.cost,
    }


def _from_row(row: logformat.Row) -> Trial:
    trial_id, plan, fidelity, seed, origin, predicted, status, result, reason, proposed_at, finished_at = row[:11]
    loss, std = json.loads(predicted)
    proposal = Proposal(Plan.from_key(plan), fidelity, seed, origin, loss, std)
    evaluation = None if result is None else Evaluation(**json.loads(result))
    return Trial(trial_id, proposal, status, evaluation, reason or "", proposed_at, finished_at)


def _difference(known: Any, value: Any) -> str:
    """The first field in which two values differ, as text."""
    if isinstance(known, Mapping) and isinstance(value, Mapping):
        for key in sorted(set(known) | set(value)):
            if known.get(key) != value.get(key):
                return f"{key} = {_difference(known.get(key), value.get(key))}"
    return f"{known!r}, but now it is {value!r}"
