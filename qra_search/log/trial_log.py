"""The trial log: every proposal and what became of it, in one file of JSON lines; the only state of a search."""

from __future__ import annotations

import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qra_search.errors import DamagedLines
from qra_search.evaluation.evaluator import Evaluation
from qra_search.files import sync
from qra_search.log import lines
from qra_search.log.errors import LogBusy, LogDamaged, LogMismatch, LogReadOnly, LogUnwritable
from qra_search.log.lines import Contents
from qra_search.log.trial import Proposal, Status, Trial, plain, printable

if TYPE_CHECKING:
    from filelock import BaseFileLock

MEMORY = ":memory:"
PATIENCE = 0.2
"""Seconds that a lock is waited for: who asks whether it is free holds it for an instant."""


class TrialLog:
    """Trials in the order in which they were proposed.

    Every proposal is on disk before it is run, every result before the next proposal is asked for, so a kill at any
    moment loses at most the evaluations in flight, which `running` then names. Any number of processes may read; the
    first write takes a lock that keeps other writers out until `release` or `close`.

    A damaged line is skipped, with a `DamagedLines` warning, and named in `damage`: a trial whose proposal is lost
    leaves a gap in the numbers, one whose result is lost counts as running.

    Args:
        path: file of JSON lines, made by the first write if it is missing; `:memory:` writes nothing.

    Raises:
        LogDamaged: the file cannot be read, or is no trial log.
        LogMismatch: the log is of another version.
    """

    def __init__(self, path: str | Path = MEMORY):
        self.path = str(path)
        self._file = -1
        self._lock: BaseFileLock | None = None
        self._contents = Contents() if self._in_memory else load(self.path)
        if self.damage:
            warnings.warn(self.describe_damage(), DamagedLines, stacklevel=2)

    # -- reading -------------------------------------------------------------------------------
    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials, in order."""
        return tuple(self._contents.trials.values())

    def __len__(self) -> int:
        return len(self._contents.trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials)

    @property
    def running(self) -> tuple[Trial, ...]:
        """Trials without a result: in flight, or lost with a killed process."""
        return tuple(t for t in self._contents.trials.values() if t.status == "running")

    @property
    def damage(self) -> tuple[tuple[int, str], ...]:
        """The number of each line that was skipped, and what is wrong with it."""
        return tuple(self._contents.damage)

    def describe_damage(self) -> str:
        """What was skipped, in one line."""
        (number, what), *others = self._contents.damage
        more = f" (and {len(others)} more)" if others else ""
        what += more
        place = Path(self.path).parent
        return f"{self.path} is damaged, line {number} was skipped: {what}; `qra doctor {place}` lists all"

    def meta(self, key: str) -> Any:
        """A value of the log's header; None if there is none."""
        return self._contents.header.get(key)

    # -- writing -------------------------------------------------------------------------------
    def set_meta(self, key: str, value: Any) -> None:
        """Write a value of the header."""
        self._begin_writing()
        self._set({key: lines.as_read(value)})

    def bind(self, further: Mapping[str, Any] | None = None, /, **identity: Any) -> None:
        """Write the identity of the search, or check it against the one that the log has; then write further entries.

        Raises:
            LogMismatch: a value differs; the message gives both.
            LogBusy: another process writes the log.
        """
        self._begin_writing()
        entries = lines.as_read(identity)
        for key, value in entries.items():
            known = self.meta(key)
            if known is not None and known != value:
                raise LogMismatch(
                    f"{self.path} was written with {key} {_difference(known, value)}: "
                    f"use another output folder, or the settings that it was begun with"
                )
        entries |= lines.as_read(further or {})
        self._set({key: value for key, value in entries.items() if self.meta(key) != value})

    def _set(self, entries: Mapping[str, Any]) -> None:
        self._write([lines.header(entries, first=self._is_new)] if entries else [])
        self._contents.header.update(entries)

    def propose(self, proposal: Proposal) -> Trial:
        """Record a proposal before it is run."""
        return self.propose_all([proposal])[0]

    def propose_all(self, proposals: Sequence[Proposal]) -> list[Trial]:
        """Record several proposals before they are run: after a kill the log has all of them, or none."""
        self._begin_writing()
        now, contents = time.time(), self._contents
        added = [Trial(contents.next + i, proposal, proposed_at=now) for i, proposal in enumerate(proposals)]
        if added:
            self._write(lines.proposals(added))
            contents.trials.update((trial.id, trial) for trial in added)
            contents.next += len(added)
        return added

    def finish(self, trial_id: int, evaluation: Evaluation) -> Trial:
        """Record the result of a running trial; raises EvaluationFailed as `plain` does."""
        return self._end(trial_id, "done", plain(evaluation), "")

    def fail(self, trial_id: int, reason: str) -> Trial:
        """Record that a running trial failed, and why."""
        return self._end(trial_id, "failed", None, printable(reason))

    def _end(self, trial_id: int, status: Status, evaluation: Evaluation | None, reason: str) -> Trial:
        self._begin_writing()
        trial = self._contents.trials[trial_id]
        if trial.status != "running":
            raise ValueError(f"trial {trial_id} is already {trial.status}: a result counts once")
        trial = replace(trial, status=status, evaluation=evaluation, reason=reason, finished_at=time.time())
        self._write([lines.result(trial)])
        self._contents.trials[trial_id] = trial
        return trial

    @property
    def _in_memory(self) -> bool:
        return self.path == MEMORY

    @property
    def _is_new(self) -> bool:
        return self._contents.end == 0

    def _begin_writing(self) -> None:
        """Take the lock unless it is held, and read what others wrote before it was taken."""
        if self._in_memory or (self._lock is not None and self._lock.is_locked):
            return
        from filelock import FileLock, Timeout  # brings asyncio, a tenth of what a refused command takes

        # A new one, since a child made by fork cannot use that of its parent.
        self._lock = FileLock(f"{self.path}.lock", thread_local=False)
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=PATIENCE, poll_interval=PATIENCE / 20)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._contents = load(self.path)
        except Timeout:
            holder = describe_writer(load(self.path).writer)
            raise LogBusy(
                f"{self.path} is being written by {holder}: wait for it or end it, or use another output folder"
            ) from None
        except OSError as error:
            self.release()
            raise LogReadOnly(
                f"{self.path} cannot be written ({(error.strerror or str(error)).lower()}): "
                f"give an output folder that can be, or make room on its disk"
            ) from None
        except BaseException:
            self.release()
            raise

    def _write(self, records: list[dict[str, Any]]) -> None:
        """Append records, all with one call, and wait until they are on disk."""
        if self._in_memory:
            return
        contents, me = self._contents, this_process(os.getpid())
        new = self._is_new
        if new and not (records and "format" in records[0]):
            records = [lines.header({}, first=True), *records]
        if contents.writer != me:
            records = [*records[:new], {"writer": me}, *records[new:]]
        if not records:
            return
        data = b"".join(map(lines.line, records))
        try:
            self._append(data)
            if new and hasattr(os, "O_DIRECTORY"):  # else a power cut may lose the file
                sync(Path(self.path).parent)
        except OSError as error:
            with suppress(OSError):  # else the next append does it
                os.ftruncate(self._file, contents.end)
            raise LogUnwritable(
                f"{self.path} cannot be written ({(error.strerror or str(error)).lower()}): make room on its disk and "
                f"resume with the same log; what was recorded is kept"
            ) from None
        contents.end += len(data)
        contents.writer = me

    def _append(self, data: bytes) -> None:
        status = os.fstat(self._file)
        if status.st_nlink == 0:
            raise OSError("the file was taken away")
        if status.st_size != self._contents.end:  # what a killed writer had begun
            os.ftruncate(self._file, self._contents.end)
        os.lseek(self._file, self._contents.end, os.SEEK_SET)
        written = os.write(self._file, data)
        if written < len(data):
            raise OSError(f"{written} of {len(data)} bytes written")
        os.fsync(self._file)

    def release(self) -> None:
        """Let other processes write; the next write takes the lock again."""
        lock, self._lock = self._lock, None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if lock is not None and lock.is_locked:
            lock.release()

    def close(self) -> None:
        """Close the file."""
        self.release()

    def __enter__(self) -> TrialLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load(path: str | Path) -> Contents:
    """What a log says; nothing if there is no file.

    Raises:
        LogDamaged, LogMismatch: see `TrialLog`.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return Contents()
    except OSError as error:
        raise LogDamaged(f"{path} cannot be read ({(error.strerror or str(error)).lower()})") from None
    return Contents.read(content, str(path))


def describe_writer(writer: Mapping[str, Any]) -> str:
    """A writer in words: `process 123 on host, since 2025-01-02 10:11:12 (qra search ...)`."""
    if "pid" not in writer:
        return "another process"
    return (
        f"process {writer['pid']} on {writer.get('host', 'an unknown host')}, "
        f"since {writer.get('started', 'an unknown time')} ({writer.get('command') or 'unknown command'})"
    )


@cache
def this_process(pid: int) -> dict[str, Any]:
    """This process as a log names its writer; by `pid` a forked child differs from its parent."""
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "started": datetime.now().isoformat(" ", "seconds"),
        "command": printable(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]),
    }


def _difference(known: Any, value: Any) -> str:
    """The first field in which two values differ, as text."""
    if isinstance(known, Mapping) and isinstance(value, Mapping):
        for key in sorted(set(known) | set(value)):
            if known.get(key) != value.get(key):
                return f"{key} = {_difference(known.get(key), value.get(key))}"
    return f"{known!r}, but now it is {value!r}"
