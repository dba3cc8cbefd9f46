"""What can be done with trial logs besides searching: check and merge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qra_search.files import replacing
from qra_search.log.errors import LogMismatch, LogUnwritable
from qra_search.log.lines import SAME_SEARCH, whole_log
from qra_search.log.trial import Trial
from qra_search.log.trial_log import describe_writer, load

_STATUSES = ("done", "failed", "running")


@dataclass(frozen=True)
class LogReport:
    """What `check` found.

    Attributes:
        damage: the number of each line that is not as it was written, and what is wrong with it.
        statuses: number of the trials that can be read, by status.
        writer: who writes it now; empty if nobody does.
    """

    path: str
    damage: tuple[tuple[int, str], ...]
    statuses: dict[str, int]
    writer: str = ""

    @property
    def ok(self) -> bool:
        return not self.damage

    def lines(self) -> list[str]:
        """The report for people."""
        counts = ", ".join(f"{self.statuses[s]} {s}" for s in _STATUSES if self.statuses.get(s)) or "no trials"
        lines = [f"{self.path}: {'sound' if self.ok else 'damaged'}, {counts}"]
        lines += [f"line {number}: {what}" for number, what in self.damage]
        if self.writer:
            lines.append(f"written now by {self.writer}")
        return lines


def check(path: str | Path) -> LogReport:
    """Read every byte of a log.

    Raises:
        LogMismatch: there is no log, or one of another version.
    """
    _must_exist(path)
    contents, _ = load(path)
    statuses: Counter[str] = Counter(trial.status for trial in contents.trials.values())
    writer = describe_writer(contents.writer) if _is_written(path) else ""
    return LogReport(str(path), tuple(contents.damage), dict(statuses), writer)


def merge(paths: Sequence[str | Path], out: str | Path) -> int:
    """Put the trials of several logs of one space and evaluator into a new log; returns their number.

    The header, and so seed and budgets, is the first log's. Trials come in the order of the logs; an evaluation
    (plan, fidelity, seed) that several hold counts once, a finished one before a failed one; running ones are
    left out.

    Raises:
        LogMismatch: the logs differ in space or evaluator, or `out` exists.
    """
    if not paths:
        raise LogMismatch("no log to merge: give at least one")
    for path in paths:
        _must_exist(path)
    header: dict[str, Any] = {}
    kept: dict[tuple[str, float, int], Trial] = {}
    for path in paths:
        own, _ = load(path)
        for key in SAME_SEARCH:
            if header and own.header.get(key) != header.get(key):
                raise LogMismatch(f"{path} has another {key} than {paths[0]}: only runs of one search can be merged")
        header = header or own.header
        for trial in own.trials.values():
            known = kept.get(trial.proposal.key)
            if trial.status != "running" and (known is None or (trial.done and not known.done)):
                kept[trial.proposal.key] = trial
    write_log(out, header, kept.values())
    return len(kept)


def write_log(path: str | Path, header: Mapping[str, Any], trials: Iterable[Trial]) -> None:
    """Write a new log at once, its trials numbered anew; if that fails, there is none.

    Raises:
        LogMismatch: there is something at the path.
        LogUnwritable: it cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise LogMismatch(f"{path} exists already: give a path that is free")
    content = whole_log(header, trials)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=True) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise LogUnwritable(f"{path} cannot be written ({(error.strerror or str(error)).lower()})") from None


def _must_exist(path: str | Path) -> None:
    if not Path(path).is_file():
        raise LogMismatch(f"{path} does not exist: give a trial log or the folder of a run")


def _is_written(path: str | Path) -> bool:
    """Whether somebody holds the writer's lock now; False if that cannot be found out here."""
    lock = Path(f"{path}.lock")
    if not lock.exists():
        return False
    try:
        with FileLock(lock, thread_local=False).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False
