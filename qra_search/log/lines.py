"""How a trial log is stored: one JSON object a line, each with a checksum.

    {"format":"qra-log/3","space":...,"evaluator":...,"crc":"1c291ca3"}    begins a log; further entries follow as
    {"header":{"prior":...},"crc":...}
    {"writer":{"pid":...,"host":...},"crc":...}                            who writes from here on
    {"trial":5,"bits":[...],"ranks":[...],...,"more":2,"crc":...}          a proposal; 2 more of its batch follow
    {"trial":5,"status":"done","loss":...,"crc":...}                       its result

`crc` is the CRC-32 of the line's bytes before `,"crc":`. This module reads and writes bytes only, no files.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import orjson

from qra_search.errors import one_line, shortened
from qra_search.evaluation.evaluator import Evaluation, EvaluationFailed
from qra_search.log.errors import LogDamaged, LogMismatch
from qra_search.log.trial import Proposal, Trial, plain
from qra_search.space.space import Plan

FORMAT = "qra-log/3"
RESERVED = frozenset(("format", "header", "writer", "trial", "crc"))
NOT_A_LOG = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, EvaluationFailed)
"""What reading data of the wrong kind raises."""

_RESULT = tuple(field.name for field in fields(Evaluation))
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_CHECKSUM_BYTES = len(b',"crc":"01234567"}')
_MAX_ID = 1 << 53


# -- writing ---------------------------------------------------------------------------------------


def line(record: Mapping[str, Any]) -> bytes:
    """A record as a line with its checksum.

    Raises:
        TypeError: it holds what JSON cannot.
    """
    body = orjson.dumps(record, option=_OPTIONS)[:-1]
    return b'%s,"crc":"%08x"}\n' % (body, zlib.crc32(body))


def as_read(value: Any) -> Any:
    """Plain data as it will be read back: tuples as lists, keys as text."""
    return orjson.loads(orjson.dumps(value, option=_OPTIONS))


def header(entries: Mapping[str, Any], *, first: bool) -> dict[str, Any]:
    """The record of header entries; the first of a file also says the format."""
    if wrong := RESERVED & set(entries):
        raise ValueError(f"a log's header has no entry {min(wrong)!r}: that name has a meaning of its own")
    return {"format": FORMAT, **entries} if first else {"header": dict(entries)}


def proposals(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """The records of trials that are proposed together."""
    return [
        {
            "trial": trial.id,
            "bits": trial.plan.bits,
            "ranks": trial.plan.ranks,
            "fidelity": float(trial.fidelity),
            "seed": int(trial.seed),
            "origin": trial.proposal.origin,
            "predicted_loss": _json(trial.proposal.predicted_loss),
            "predicted_std": _json(trial.proposal.predicted_std),
            "proposed_at": trial.proposed_at,
            **({"more": more} if (more := len(trials) - 1 - i) else {}),
        }
        for i, trial in enumerate(trials)
    ]


def result(trial: Trial) -> dict[str, Any]:
    """The record of what became of a trial."""
    if trial.evaluation is None:
        end: dict[str, Any] = {"reason": trial.reason}
    else:
        end = {name: _json(value) for name, value in vars(trial.evaluation).items()}
        end["metrics"] = {name: _json(value) for name, value in trial.evaluation.metrics.items()}
    return {"trial": trial.id, "status": trial.status, **end, "finished_at": trial.finished_at}


def _json(value: Any) -> Any:
    """A number as text if it is NaN or infinite, which JSON does not know."""
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


# -- reading ---------------------------------------------------------------------------------------


def is_intact(raw: bytes) -> bool:
    """Whether a line, without its end, has the checksum that it says."""
    return raw[-_CHECKSUM_BYTES:] == b',"crc":"%08x"}' % zlib.crc32(raw[:-_CHECKSUM_BYTES])


class Contents:
    """What the bytes of a log say.

    Attributes:
        header: entries by name; the last value of each.
        trials: by number; one is missing if its proposal was lost.
        damage: (number of the line, what is wrong) of every line that was left out.
        writer: the last writer's process, host and command.
        next: number of the next trial.
        end: bytes up to the end of the last whole line, or of the last whole batch; what follows was being written
            when its process died.
    """

    def __init__(self) -> None:
        self.header: dict[str, Any] = {}
        self.trials: dict[int, Trial] = {}
        self.damage: list[tuple[int, str]] = []
        self.writer: dict[str, Any] = {}
        self.next = self.end = 0
        self._batch: list[int] = []
        self._batch_start = 0
        self._read = 0

    @classmethod
    def read(cls, content: bytes, name: str = "the log") -> Contents:
        """Read all lines.

        Raises:
            LogDamaged: no line is one of a trial log.
            LogMismatch: it is of another version, or a second log follows in the same file.
        """
        found = cls()
        for number, raw in enumerate(content.split(b"\n")[:-1], start=1):
            try:
                found._take(number, raw)
            except LogMismatch as error:
                raise LogMismatch(f"{name}, line {number}: {error}") from None
            found.end += len(raw) + 1
        found._drop_unfinished_batch()
        begun = b'{"format":"%s"' % FORMAT.encode()
        if not found._read and not (content.startswith(begun) or begun.startswith(content)):
            raise LogDamaged(f"{name} is not a readable trial log: no line of it is a log's")
        return found

    def _take(self, number: int, raw: bytes) -> None:
        if not raw:
            return
        if not is_intact(raw):
            self.damage.append((number, "its checksum is wrong"))
            self._batch = []
            return
        try:
            record = orjson.loads(raw)
            if "trial" in record:
                (self._propose if "bits" in record else self._finish)(number, record)
            elif "writer" in record:
                self.writer = dict(record["writer"])
            else:
                self._update(record)
        except LogMismatch:
            raise
        except NOT_A_LOG as error:
            self.damage.append((number, f"it is not what a log holds ({short(error)})"))
        else:
            self._read += 1
            if "more" not in record:
                self._batch = []

    def _drop_unfinished_batch(self) -> None:
        """Forget the proposals of a batch whose last line was not written: a log has a batch whole or not at all."""
        if self._batch:
            self.end, self.next = self._batch_start, self._batch[0]
        for number in self._batch:
            del self.trials[number]
        self._batch = []

    def _propose(self, number: int, record: Mapping[str, Any]) -> None:
        trial = _proposed(record)
        if trial.id < self.next:
            raise ValueError(f"trial {trial.id} comes again")
        if trial.id > self.next:
            lost = f"{self.next}" if trial.id == self.next + 1 else f"{self.next} to {trial.id - 1}"
            self.damage.append((number, f"trial {lost} is missing before it"))
        self.trials[trial.id] = trial
        self.next = trial.id + 1
        if "more" in record:
            self._batch_start = self._batch_start if self._batch else self.end
            self._batch.append(trial.id)

    def _finish(self, number: int, record: Mapping[str, Any]) -> None:
        trial_id = _number_of(record)
        trial = self.trials.get(trial_id)
        if trial is None:
            if trial_id >= self.next:  # else its proposal has been reported as missing
                self.next = trial_id + 1
                self.damage.append((number, f"it is the result of trial {trial_id}, whose proposal is missing"))
        elif trial.status != "running":
            raise ValueError(f"trial {trial_id} has a result already")
        else:
            self.trials[trial_id] = _finished(trial, record)

    def _update(self, record: dict[str, Any]) -> None:
        if "format" in record:
            if record["format"] != FORMAT:
                raise LogMismatch(f"log version {record['format']!r}, this qra reads {FORMAT!r}")
            if self._read:
                raise LogMismatch("a second log begins here: give each log a file of its own")
        elif "header" not in record:
            raise ValueError("no such kind of line")
        entries = record.get("header", record)
        self.header.update({key: value for key, value in entries.items() if key not in RESERVED})


def _proposed(record: Mapping[str, Any]) -> Trial:
    origin, seed = record["origin"], record["seed"]
    if type(origin) is not str or type(seed) is not int:
        raise ValueError("origin must be text, and seed a whole number")
    proposal = Proposal(
        Plan.from_dict(record),
        float(record["fidelity"]),
        seed,
        origin,
        _optional(record["predicted_loss"]),
        _optional(record["predicted_std"]),
    )
    return Trial(_number_of(record), proposal, proposed_at=float(record["proposed_at"]))


def _finished(trial: Trial, record: Mapping[str, Any]) -> Trial:
    status, evaluation, reason = record["status"], None, ""
    if status == "done":
        evaluation = plain(Evaluation(**{name: record[name] for name in _RESULT}))
    elif status == "failed":
        reason = str(record["reason"])
    else:
        raise ValueError(f"status is {shortened(status)}")
    finished_at = _optional(record["finished_at"])
    return replace(trial, status=status, evaluation=evaluation, reason=reason, finished_at=finished_at)


def _number_of(record: Mapping[str, Any]) -> int:
    number: int = record["trial"]
    if type(number) is not int or not 0 <= number < _MAX_ID:
        raise ValueError(f"trial is {shortened(number)}, a number from 0 up is needed")
    return number


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def short(error: BaseException) -> str:
    """An exception with its type in one short line."""
    return one_line(f"{type(error).__name__}: {error}", 200)
