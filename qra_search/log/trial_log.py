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

from qra_search.errors import DamagedLines, RunFailed, describe_os_error
from qra_search.evaluation.evaluator import Evaluation, normalize_evaluation
from qra_search.files import sync_to_disk
from qra_search.log.lines import (
    FORMAT,
    LogContents,
    LogError,
    encode_line,
    encode_proposal,
    encode_result,
    read_log,
    round_trip,
)
from qra_search.log.trial import Proposal, Status, Trial, to_printable

if TYPE_CHECKING:
    from filelock import BaseFileLock

MEMORY = ":memory:"
LOCK_SECONDS = 0.2
"""Wait for a lock: a process that asks whether it is free holds it for an instant."""


class TrialLog:
    """Trials in the order in which they were proposed.

    Every proposal is on disk before it is run, every result before the next proposal is asked for, so a kill at any
    moment loses at most the evaluations in flight, which `running` then names. Any number of processes may read; the
    first write takes a lock that keeps other writers out until `close`.

    A damaged line is skipped, with a `DamagedLines` warning, and named in `damage`: a trial whose proposal is lost
    leaves a gap in the numbers, one whose result is lost counts as running.

    Args:
        path: file of JSON lines, made by the first write if it is missing; `:memory:` writes nothing.

    Raises:
        LogError: the file cannot be read, is no trial log, or is of another version.
    """

    def __init__(self, path: str | Path = MEMORY):
        self.path = str(path)
        self._file = -1
        self._lock: BaseFileLock | None = None
        self._contents = LogContents() if self._is_in_memory else self._load()
        if self.damage:
            (number, what), *others = self.damage
            more = f" (and {len(others)} more)" if others else ""
            warnings.warn(
                f"{self.path} is damaged, line {number} was skipped: {what}{more}; "
                f"`qra doctor {Path(self.path).parent}` lists all",
                DamagedLines,
                stacklevel=2,
            )

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(self._contents.trials.values())

    def __len__(self) -> int:
        return len(self._contents.trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials)

    @property
    def running_trials(self) -> tuple[Trial, ...]:
        """Trials without a result: in flight, or lost with a killed process."""
        return tuple(t for t in self if t.status == "running")

    @property
    def damage(self) -> tuple[tuple[int, str], ...]:
        """The number of each line that was skipped, and what is wrong with it."""
        return tuple(self._contents.damage)

    def get_meta(self, key: str) -> Any:
        """A value of the log's header; None if there is none."""
        return self._contents.header.get(key)

    def bind(self, entries: Mapping[str, Any] | None = None, /, **identity: Any) -> None:
        """Write the identity of the search, or check it against that of the log; then write further header entries.

        Raises LogError if a value differs (the message gives both), or another process writes the log.
        """
        self._begin_writing()
        known, new = self._contents.header, round_trip({**identity, **(entries or {})})
        for key in identity:
            if known.get(key) is not None and known[key] != new[key]:
                self.close()
                raise LogError(
                    f"{self.path} was written with {key} {_describe_difference(known[key], new[key])}: "
                    f"use another output folder, or the settings that it was begun with"
                )
        new = {key: value for key, value in new.items() if known.get(key) != value}
        if new:
            self._write({"header": new} if self._contents.end else {"format": FORMAT, **new})
            known.update(new)

    def propose(self, proposal: Proposal) -> Trial:
        """Record a proposal before it is run."""
        return self.propose_all([proposal])[0]

    def propose_all(self, proposals: Sequence[Proposal]) -> list[Trial]:
        """Record several proposals before they are run: after a kill the log has all of them, or none."""
        if not proposals:
            return []
        self._begin_writing()
        now, first = time.time(), self._contents.next
        trials = [Trial(id, proposal, proposed_at=now) for id, proposal in enumerate(proposals, start=first)]
        records = [encode_proposal(trial) for trial in trials]
        self._write(records[0] if len(records) == 1 else {"batch": records})
        self._contents.trials.update((trial.id, trial) for trial in trials)
        self._contents.next += len(trials)
        return trials

    def finish(self, trial_id: int, evaluation: Evaluation) -> Trial:
        """Record the result of a running trial; raises EvaluationFailed as `normalize_evaluation` does."""
        return self._end(trial_id, "done", normalize_evaluation(evaluation), "")

    def fail(self, trial_id: int, reason: str) -> Trial:
        """Record that a running trial failed, and why."""
        return self._end(trial_id, "failed", None, to_printable(reason))

    def _end(self, trial_id: int, status: Status, evaluation: Evaluation | None, reason: str) -> Trial:
        self._begin_writing()
        trial = self._contents.trials[trial_id]
        if trial.status != "running":
            raise ValueError(f"trial {trial_id} is already {trial.status}: a result counts once")
        trial = replace(trial, status=status, evaluation=evaluation, reason=reason, finished_at=time.time())
        self._write(encode_result(trial))
        self._contents.trials[trial_id] = trial
        return trial

    def close(self) -> None:
        """Close the file and let other processes write; the next write opens it again."""
        lock, self._lock = self._lock, None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if lock is not None and lock.is_locked:
            lock.release()

    def __enter__(self) -> TrialLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def _is_in_memory(self) -> bool:
        return self.path == MEMORY

    def _load(self) -> LogContents:
        try:
            return read_log(Path(self.path).read_bytes(), self.path)
        except FileNotFoundError:
            return LogContents()
        except OSError as error:
            raise LogError(f"{self.path} cannot be read ({describe_os_error(error)})") from None

    def _begin_writing(self) -> None:
        """Take the lock unless it is held, and read what others wrote before it was taken."""
        if self._is_in_memory or (self._lock is not None and self._lock.is_locked):
            return
        from filelock import FileLock, Timeout  # brings asyncio, a tenth of what a refused command takes

        # A new one, since a child made by fork cannot use that of its parent.
        self._lock = FileLock(f"{self.path}.lock", thread_local=False)
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=LOCK_SECONDS, poll_interval=LOCK_SECONDS / 20)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._contents = self._load()
        except Timeout:
            raise LogError(
                f"{self.path} is being written by {self._load().writer}: "
                f"wait for it or end it, or use another output folder"
            ) from None
        except OSError as error:
            self.close()
            raise LogError(
                f"{self.path} cannot be written ({describe_os_error(error)}): "
                f"give an output folder that can be, or make room on its disk"
            ) from None
        except BaseException:
            self.close()
            raise

    def _write(self, record: dict[str, Any]) -> None:
        """Append a record, and whatever must stand before it, with one call; wait until it is on disk."""
        if self._is_in_memory:
            return
        contents, writer = self._contents, describe_process(os.getpid())
        records = [record]
        if not contents.end and "format" not in record:
            records.insert(0, {"format": FORMAT})
        if contents.writer != writer:
            records.insert(0 if contents.end else 1, {"writer": writer})
        data = b"".join(map(encode_line, records))
        try:
            self._append(data)
            if not contents.end and hasattr(os, "O_DIRECTORY"):  # else a power cut may lose the file
                sync_to_disk(Path(self.path).parent)
        except OSError as error:
            with suppress(OSError):  # else the next append does it
                os.ftruncate(self._file, contents.end)
            raise RunFailed(
                f"{self.path} cannot be written ({describe_os_error(error)}): make room on its disk and "
                f"resume with the same log; what was recorded is kept"
            ) from None
        contents.end += len(data)
        contents.writer = writer

    def _append(self, data: bytes) -> None:
        status = os.fstat(self._file)
        if status.st_nlink == 0:
            raise OSError("the file was removed")
        if status.st_size != self._contents.end:  # what a killed writer had begun
            os.ftruncate(self._file, self._contents.end)
        os.lseek(self._file, self._contents.end, os.SEEK_SET)
        if (written := os.write(self._file, data)) < len(data):
            raise OSError(f"{written} of {len(data)} bytes written")
        os.fsync(self._file)


@cache
def describe_process(pid: int) -> str:
    """This process, for others that wait for it; by `pid` a forked child differs from its parent."""
    command = to_printable(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200])
    return f"process {pid} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S} ({command})"


def _describe_difference(known: Any, value: Any) -> str:
    """The first field in which two values differ, as text."""
    if isinstance(known, Mapping) and isinstance(value, Mapping):
        for key in sorted(set(known) | set(value)):
            if known.get(key) != value.get(key):
                return f"{key} = {_describe_difference(known.get(key), value.get(key))}"
    return f"{known!r}, but now it is {value!r}"
