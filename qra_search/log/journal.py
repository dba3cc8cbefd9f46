"""The journal: every proposal and what became of it, in one file of JSON lines; the only state of a search.

{"format":"qra-log/5","header":{"space":...,"evaluator":...}}   begins a journal
{"header":{"sensitivities":...}}                                further entries
{"trials":[{"id":5,"proposal":{...}},{"id":6,...}]}             proposals of a batch, in the journal all or none
{"trials":[{"id":5,"proposal":{...},"status":"done",...}]}      a result, with its proposal again
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import pydantic.dataclasses
from filelock import BaseFileLock, FileLock, Timeout
from pydantic_core import from_json, to_json

from qra_search.errors import (
    BadInput,
    EvaluationFailed,
    RunFailed,
    TornLineWarning,
    describe_os_error,
    describe_problem,
    shorten,
)
from qra_search.files import sync_to_disk
from qra_search.schemas import MODEL_CONFIG, Evaluation, Proposal, Status, Trial, make_adapter

LOG_FORMAT: Final = "qra-log/5"
LINE_START = b'{"format":"'
IN_MEMORY_PATH = ":memory:"
LOCK_SECONDS = 0.2
"""Wait for a lock: a process that asks whether it is free holds it for an instant."""
MAX_REASON = 4000
"""Characters of the reason of a failed trial."""


class LogError(BadInput):
    """The journal cannot be used: it is of another search or version, damaged, read-only, or another process writes
    it."""


@pydantic.dataclasses.dataclass(frozen=True, config=MODEL_CONFIG)
class Line:
    """One line of a journal; each has one of these, the first one `format`, and perhaps `header`."""

    format: Literal["qra-log/5"] | None = None
    header: dict[str, Any] | None = None
    trials: tuple[Trial, ...] = ()


@dataclass
class JournalContents:
    """What the bytes of a journal say.

    Attributes:
        header: entries by name; the last value of each.
        trials: by number.
        end: bytes up to the end of the last whole line; what follows was being written when its process died.
    """

    header: dict[str, Any] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    end: int = 0

    def apply_line(self, line: Line) -> None:
        """Add what a line says; raises ValueError if it contradicts those before it."""
        if line == Line():
            raise ValueError("it has neither a format, nor a header, nor trials")
        if (line.format is None) != bool(self.end):
            raise ValueError("the first line, and no other, must hold the format")
        self.header.update(line.header or {})
        for trial in line.trials:
            count = len(self.trials)
            if trial.status == "running":
                if trial.id != count:
                    raise ValueError(f"it proposes trial {trial.id} where trial {count} is next")
                self.trials.append(trial)
                continue
            known = self.trials[trial.id] if trial.id < count else None
            if known is None or known.proposal != trial.proposal:
                raise ValueError(
                    f"it has a result of trial {trial.id}, but no line before proposes this trial with the same values"
                )
            if known.status != "running":
                raise ValueError(f"it has a second result of trial {trial.id}")
            self.trials[trial.id] = trial


def parse_journal(content: bytes, name: str = "the journal") -> JournalContents:
    """Parse the bytes of a journal, without an incomplete last line.

    Raises LogError, which names the line, if any other is not as it was written, or the version is another.
    """
    contents = JournalContents()
    *lines, torn = content.split(b"\n")
    for number, raw in enumerate(lines, start=1):
        try:
            contents.apply_line(make_adapter(Line).validate_json(raw))
        except (ValueError, EvaluationFailed) as error:
            raise LogError(
                f"{name}, line {number} is damaged, or not in the format {LOG_FORMAT!r} ({describe_problem(error)}): "
                "restore the file from a copy, or use another folder"
            ) from None
        contents.end += len(raw) + 1
    if not lines and not LINE_START.startswith(torn[: len(LINE_START)]):
        raise LogError(f"{name} is not the journal of a search: give another folder")
    return contents


def convert_through_json(value: Any) -> Any:
    return from_json(to_json(value, inf_nan_mode="strings"))


def clean_text(text: str) -> str:
    """Text that can be stored: valid UTF-8, of bounded length."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + f"... ({len(text)} characters)"


class TrialLog(AbstractContextManager["TrialLog"]):
    """Trials in the order in which they were proposed.

    Every proposal is on disk before it is run, every result before the next proposal is asked for, so a kill at any
    moment loses at most the evaluations in flight, which `running_trials` then names. Any number of processes may read;
    the first write takes a lock that keeps other writers out until `close`. A line that was being written when its
    process died is dropped by the next writer, with a `TornLineWarning` warning.

    Args:
        path: file of JSON lines, made by the first write if it is missing; `:memory:` writes nothing.

    Raises:
        LogError: the file cannot be read, is no journal, is damaged, or is of another version.
    """

    def __init__(self, path: str | Path = IN_MEMORY_PATH):
        self.path = str(path)
        self._is_in_memory = self.path == IN_MEMORY_PATH
        self._file = -1
        self._lock: BaseFileLock | None = None
        self._contents = JournalContents() if self._is_in_memory else self._load()

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(self._contents.trials)

    def __len__(self) -> int:
        return len(self._contents.trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials)

    @property
    def running_trials(self) -> tuple[Trial, ...]:
        """Trials without a result: in flight, or lost with a killed process."""
        return tuple(t for t in self if t.status == "running")

    def get_meta(self, key: str) -> Any:
        """A value of the journal's header; None if there is none."""
        return self._contents.header.get(key)

    def bind(self, entries: Mapping[str, Any] | None = None, /, **identity: Any) -> None:
        """Write the identity of the search, or check it against that of the journal; then write further header entries.

        Raises LogError if a value differs (the message gives both), or another process writes the journal.
        """
        self._begin_writing()
        known = self._contents.header
        new = convert_through_json({**identity, **(entries or {})})
        for key in identity:
            if known.get(key) is not None and known[key] != new[key]:
                self.close()
                raise LogError(
                    f"{self.path} was written with {_describe_difference(key, known[key], new[key])}: "
                    "use another output folder, or the settings of its first start"
                )
        new = {key: value for key, value in new.items() if known.get(key) != value}
        if new:
            self._write(Line(header=new))
            known.update(new)

    def propose(self, proposal: Proposal) -> Trial:
        return self.propose_all([proposal])[0]

    def propose_all(self, proposals: Sequence[Proposal]) -> list[Trial]:
        """Record several proposals before they are run: after a kill the journal has all of them, or none."""
        if not proposals:
            return []
        self._begin_writing()
        now = time.time()
        trials = [Trial(id, proposal, proposed_at=now) for id, proposal in enumerate(proposals, len(self))]
        self._write(Line(trials=tuple(trials)))
        self._contents.trials += trials
        return trials

    def finish(self, trial_id: int, evaluation: Evaluation) -> Trial:
        return self._end(trial_id, "done", evaluation, "")

    def fail(self, trial_id: int, reason: str) -> Trial:
        return self._end(trial_id, "failed", None, clean_text(reason))

    def _end(self, trial_id: int, status: Status, evaluation: Evaluation | None, reason: str) -> Trial:
        self._begin_writing()
        trial = self._contents.trials[trial_id]
        if trial.status != "running":
            raise ValueError(
                f"trial {trial_id} already has its result ({trial.status}): tell each trial's result once"
            )
        trial = replace(trial, status=status, evaluation=evaluation, reason=reason, finished_at=time.time())
        self._write(Line(trials=(trial,)))
        self._contents.trials[trial_id] = trial
        return trial

    def close(self) -> None:
        """Close the file and let other processes write; the next write opens it again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _load(self) -> JournalContents:
        try:
            return parse_journal(Path(self.path).read_bytes(), self.path)
        except FileNotFoundError:
            return JournalContents()
        except OSError as error:
            raise LogError(f"{self.path} cannot be read ({describe_os_error(error)})") from None

    def _begin_writing(self) -> None:
        """Take the lock unless it is held, and read what others wrote before it was taken."""
        if self._is_in_memory or (self._lock is not None and self._lock.is_locked):
            return
        # A new one, since a child made by fork cannot use that of its parent.
        self._lock = FileLock(f"{self.path}.lock", thread_local=False)
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=LOCK_SECONDS, poll_interval=LOCK_SECONDS / 20)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._contents = self._load()
            if os.fstat(self._file).st_size > self._contents.end:
                os.ftruncate(self._file, self._contents.end)
                warnings.warn(
                    f"{self.path}: the last line is incomplete and is dropped; its evaluation is repeated",
                    TornLineWarning,
                    stacklevel=3,
                )
        except Timeout:
            raise LogError(
                f"{self.path} is being written by another process: wait for it or end it"
            ) from None
        except OSError as error:
            self.close()
            raise LogError(
                f"{self.path} cannot be written ({describe_os_error(error)}): give another output folder"
            ) from None
        except BaseException:
            self.close()
            raise

    def _write(self, line: Line) -> None:
        """Append a line with one call, and wait until it is on disk."""
        if self._is_in_memory:
            return
        end = self._contents.end
        line = line if end else replace(line, format=LOG_FORMAT)
        data = make_adapter(Line).dump_json(line, exclude_defaults=True) + b"\n"
        try:
            if os.fstat(self._file).st_nlink == 0:
                raise OSError("the file was removed")
            os.ftruncate(self._file, end)  # of what a write that failed had begun
            written = os.pwrite(self._file, data, end)
            if written < len(data):
                raise OSError(f"only {written} of {len(data)} bytes could be written")
            os.fsync(self._file)
            if not end:  # else a power cut may lose the file
                sync_to_disk(Path(self.path).parent)
        except OSError as error:
            with suppress(OSError):  # else the next write does it
                os.ftruncate(self._file, end)
            raise RunFailed(
                f"{self.path} cannot be written ({describe_os_error(error)}): fix the cause, "
                "and resume with the same log"
            ) from None
        self._contents.end += len(data)


def _describe_difference(name: str, known: Any, value: Any) -> str:
    """The first field in which two values differ, as text."""
    if isinstance(known, Mapping) and isinstance(value, Mapping):
        for key in sorted(set(known) | set(value)):
            if known.get(key) != value.get(key):
                return _describe_difference(f"{name}.{key}", known.get(key), value.get(key))
    return f"{name} = {shorten(known)}, but now it is {shorten(value)}"
