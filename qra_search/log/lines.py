"""How a trial log lies on disk: one JSON object a line, each with a checksum.

    {"format":"qra-log/3","space":...,"evaluator":...,"crc":"1c291ca3"}    begins a log; further entries follow as
    {"header":{"prior":...},"crc":...}
    {"writer":{"pid":...,"host":...},"crc":...}                            who writes from here on
    {"trial":5,"bits":[...],"ranks":[...],...,"more":2,"crc":...}          a proposal; 2 more of its batch follow
    {"trial":5,"status":"done","loss":...,"crc":...}                       its result

`crc` is the CRC-32 of the line's bytes before `,"crc":`. This module reads and writes bytes only, no files.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from itertools import islice
from typing import Any

import orjson

from qra_search.errors import one_line, shortened
from qra_search.evaluation.evaluator import Evaluation, EvaluationFailed
from qra_search.log.errors import LogDamaged, LogMismatch
from qra_search.log.trial import Proposal, Trial, plain
from qra_search.space.space import Plan

FORMAT = "qra-log/3"
SAME_SEARCH = ("space", "evaluator")
"""Header entries that logs must agree on to be put together: what was searched, and what measured it."""
RESERVED = frozenset(("format", "header", "writer", "trial", "crc"))
NOT_A_LOG = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, EvaluationFailed)
"""What reading data of the wrong kind raises."""

_RESULT = tuple(field.name for field in fields(Evaluation))
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_BEGIN = re.compile(rb'\{"(?:format|header|writer|trial)":')
_SEAL = re.compile(rb',"crc":"[0-9a-f]{8}"\}')
_SEAL_BYTES = len(b',"crc":"01234567"}')
_OLD = b"SQLite format 3\0"
_GUESSES = 8
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


def proposals(trials: Iterable[Trial], base: int = 0) -> list[dict[str, Any]]:
    """The records of trials that are proposed together, numbered from `base`."""
    trials = list(trials)
    return [
        {
            "trial": trial.id - base,
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


def result(trial: Trial, base: int = 0) -> dict[str, Any]:
    """The record of what became of a trial."""
    if trial.evaluation is None:
        end: dict[str, Any] = {"reason": trial.reason}
    else:
        end = {name: _json(value) for name, value in vars(trial.evaluation).items()}
        end["metrics"] = {name: _json(value) for name, value in trial.evaluation.metrics.items()}
    return {"trial": trial.id - base, "status": trial.status, **end, "finished_at": trial.finished_at}


def whole_log(entries: Mapping[str, Any], trials: Iterable[Trial]) -> bytes:
    """A log from its beginning: the header, then each trial with its result, numbered anew."""
    records = [header(entries, first=True)]
    for number, trial in enumerate(trials):
        records += proposals([trial], trial.id - number)
        if trial.status != "running":
            records.append(result(trial, trial.id - number))
    return b"".join(map(line, records))


def _json(value: Any) -> Any:
    """A number as JSON has it, which knows no NaN and no infinity."""
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


# -- reading ---------------------------------------------------------------------------------------


def is_intact(raw: bytes) -> bool:
    """Whether a line, without its end, has the checksum that it says."""
    return raw[-_SEAL_BYTES:] == b',"crc":"%08x"}' % zlib.crc32(raw[:-_SEAL_BYTES])


def pieces(raw: bytes) -> Iterator[bytes]:
    """The intact lines in a damaged one: of two lines that lost the end between them, both."""
    start = 0
    for seal in _SEAL.finditer(raw):
        for begin in islice(_BEGIN.finditer(raw, start, seal.start()), _GUESSES):
            if is_intact(piece := raw[begin.start() : seal.end()]):
                yield piece
                break
        start = seal.end()


class Contents:
    """What the bytes of a log say.

    Attributes:
        header: entries by name; the last value of each.
        trials: by number; one is missing if its proposal was lost.
        damage: (number of the line, what is wrong) of every line that was left out.
        writer: who wrote last, as he introduced himself.
        base: number of the trial that this section of the file calls 0; other than 0 only if logs were joined.
        next: number of the next trial.
        end: bytes that are whole. What stands behind them was being written when its process died.
        open_line: whether the last whole line lacks its end.
    """

    def __init__(self) -> None:
        self.header: dict[str, Any] = {}
        self.trials: dict[int, Trial] = {}
        self.damage: list[tuple[int, str]] = []
        self.writer: dict[str, Any] = {}
        self.base = self.next = self.end = 0
        self.open_line = False
        self._batch: list[int] = []
        self._batch_start = 0
        self._taken = 0

    @classmethod
    def read(cls, content: bytes, name: str = "the log") -> Contents:
        """Read all lines.

        Raises:
            LogDamaged: not one line is one of a trial log.
            LogMismatch: it is of another version, or joined from logs of different searches.
        """
        if content.startswith(_OLD):
            raise LogMismatch(f"{name} is a log of an older version: `qra log convert` makes a new one of it")
        found = cls()
        *lines, tail = content.split(b"\n")
        try:
            for number, raw in enumerate(lines, start=1):
                found._line(number, raw)
                found.end += 1
            found._tail(len(lines) + 1, tail)
        except LogMismatch as error:
            raise LogMismatch(f"{name}, {error}") from None
        begun = b'{"format":"%s"' % FORMAT.encode()
        if not found._taken and not (content.startswith(begun) or begun.startswith(content)):
            raise LogDamaged(f"{name} is not a readable trial log: not one line of it is as a log's must be")
        return found

    def _line(self, number: int, raw: bytes) -> None:
        if is_intact(raw):
            self._take(number, raw)
        elif raw:
            self.damage.append((number, "it is not what was written"))
            self._batch = []
            for piece in pieces(raw):
                self._take(number, piece)
        self.end += len(raw)

    def _tail(self, number: int, raw: bytes) -> None:
        """What stands behind the last end of a line: nothing, one that lost its end, or one that was broken off."""
        if is_intact(raw) or any(True for _ in pieces(raw)):
            self._line(number, raw)
            self.open_line = True
        if self._batch:
            self.end, self.open_line = self._batch_start, False
            self._drop_batch()

    def _drop_batch(self) -> None:
        for number in self._batch:
            del self.trials[number]
            self.next = min(self.next, number)
        self._batch = []

    def _take(self, number: int, raw: bytes) -> None:
        try:
            record = orjson.loads(raw)
            if "trial" in record:
                (self._propose if "bits" in record else self._finish)(number, record)
            elif "writer" in record:
                self.writer = dict(record["writer"])
            else:
                self._update(number, record)
        except LogMismatch:
            raise
        except NOT_A_LOG as error:
            self.damage.append((number, f"it is not what a log holds ({short(error)})"))
        else:
            self._taken += 1
            if "more" not in record:
                self._batch = []

    def _propose(self, number: int, record: Mapping[str, Any]) -> None:
        trial = _proposed(record, self.base)
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
        trial_id = _number_of(record, self.base)
        trial = self.trials.get(trial_id)
        if trial is None:
            if trial_id >= self.next:  # else its proposal has been reported as missing
                self.next = trial_id + 1
                self.damage.append((number, f"it is the result of trial {trial_id}, whose proposal is missing"))
        elif trial.status != "running":
            raise ValueError(f"trial {trial_id} has a result already")
        else:
            self.trials[trial_id] = _finished(trial, record)

    def _update(self, number: int, record: dict[str, Any]) -> None:
        entries = record.get("header", record)
        if "format" in record:
            if record["format"] != FORMAT:
                raise LogMismatch(f"line {number}: log version {record['format']!r}, this qra reads {FORMAT!r}")
            self._drop_batch()
            self.base = self.next
        elif "header" not in record:
            raise ValueError("no such kind of line")
        for key in SAME_SEARCH:
            if key in self.header and key in entries and entries[key] != self.header[key]:
                raise LogMismatch(f"line {number}: another {key} than before: only logs of one search can be joined")
        self.header.update({key: value for key, value in entries.items() if key not in RESERVED})


def _proposed(record: Mapping[str, Any], base: int) -> Trial:
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
    return Trial(_number_of(record, base), proposal, proposed_at=float(record["proposed_at"]))


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


def _number_of(record: Mapping[str, Any], base: int) -> int:
    number = record["trial"]
    if type(number) is not int or not 0 <= number < _MAX_ID:
        raise ValueError(f"trial is {shortened(number)}, a number from 0 up is needed")
    return base + number


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def short(error: BaseException) -> str:
    """An exception with its type in one short line."""
    return one_line(f"{type(error).__name__}: {error}", 200)
