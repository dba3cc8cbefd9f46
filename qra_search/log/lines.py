"""How a trial log is stored: one JSON object a line, each with a checksum. Bytes only, no files.

    {"format":"qra-log/3","space":...,"evaluator":...,"crc":"1c291ca3"}    begins a log; further entries follow as
    {"header":{"prior":...},"crc":...}
    {"writer":"process 123 on ...","crc":...}                              who writes from here on
    {"trial":5,"bits":[...],"ranks":[...],...,"crc":...}                   a proposal; those of a batch share a line,
    {"batch":[{"trial":6,...},{"trial":7,...}],"crc":...}                  so that it is in the log whole or not at all
    {"trial":5,"status":"done","loss":...,"crc":...}                       its result

`crc` is the CRC-32 of the line's bytes before `,"crc":`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import orjson

from qra_search.errors import BadInput, one_line, shorten
from qra_search.evaluation.evaluator import Evaluation, EvaluationFailed, normalize_evaluation
from qra_search.log.trial import Proposal, Trial
from qra_search.space.space import Plan

FORMAT = "qra-log/3"
NOT_A_LOG = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, EvaluationFailed)
"""What reading data of the wrong kind raises."""

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_CHECKSUM_BYTES = len(b',"crc":"01234567"}')
_MAX_ID = 1 << 53


class LogError(BadInput):
    """The log cannot be used: it is of another search or version, damaged, read-only, or another process writes it."""


@dataclass
class LogContents:
    """What the bytes of a log say.

    Attributes:
        header: entries by name; the last value of each.
        trials: by number; one is missing if its proposal was lost.
        damage: (number of the line, what is wrong) of every line that was left out.
        writer: the process that wrote last, in words.
        next: number of the next trial.
        end: bytes up to the end of the last whole line; what follows was being written when its process died.
    """

    header: dict[str, Any] = field(default_factory=dict)
    trials: dict[int, Trial] = field(default_factory=dict)
    damage: list[tuple[int, str]] = field(default_factory=list)
    writer: str = "another process"
    next: int = 0
    end: int = 0

    def add(self, record: dict[str, Any], number: int) -> None:
        """Add the record of a line."""
        if "batch" in record or "bits" in record:
            for trial in map(_read_proposal, record.get("batch", (record,))):
                self._add_proposal(trial, number)
        elif "trial" in record:
            self._add_result(record, number)
        elif "writer" in record:
            self.writer = str(record["writer"])
        elif "header" in record:
            self.header.update(record["header"])
        else:
            if record["format"] != FORMAT:
                raise LogError(f"log version {record['format']!r}, this qra reads {FORMAT!r}")
            self.header.update((key, value) for key, value in record.items() if key not in ("format", "crc"))

    def _add_proposal(self, trial: Trial, number: int) -> None:
        if trial.id < self.next:
            raise ValueError(f"trial {trial.id} appears twice")
        if trial.id > self.next:
            self.damage.append((number, f"trials {self.next} to {trial.id - 1} are missing before it"))
        self.trials[trial.id] = trial
        self.next = trial.id + 1

    def _add_result(self, record: Mapping[str, Any], number: int) -> None:
        trial_id = _read_id(record)
        if trial_id not in self.trials:
            if trial_id >= self.next:  # else its proposal has been reported as missing
                self.next = trial_id + 1
                self.damage.append(
                    (number, f"it is the result of trial {trial_id}, whose proposal is missing")
                )
        elif self.trials[trial_id].status != "running":
            raise ValueError(f"trial {trial_id} has a result already")
        else:
            self.trials[trial_id] = _read_result(self.trials[trial_id], record)


def read_log(content: bytes, name: str = "the log") -> LogContents:
    """Read all lines of a log.

    Raises LogError if none is of a trial log, it is of another version, or a second log follows in the same file.
    """
    contents, understood = LogContents(), 0
    for number, raw in enumerate(content.split(b"\n")[:-1], start=1):
        contents.end += len(raw) + 1
        if raw and not is_intact(raw):
            contents.damage.append((number, "its checksum is wrong"))
        elif raw:
            try:
                record = orjson.loads(raw)
                if "format" in record and understood:
                    raise LogError("a second log starts here: write each log to its own file")
                contents.add(record, number)
                understood += 1
            except LogError as error:
                raise LogError(f"{name}, line {number}: {error}") from None
            except NOT_A_LOG as error:
                contents.damage.append(
                    (number, f"it is not a record of a trial log ({describe_briefly(error)})")
                )
    begin = b'{"format":"%s"' % FORMAT.encode()
    if not understood and not (content.startswith(begin) or begin.startswith(content)):
        raise LogError(f"{name} is not a readable trial log: it has no valid line")
    return contents


def encode_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line with its checksum; raises TypeError if it holds what JSON cannot."""
    body = orjson.dumps(record, option=_OPTIONS)[:-1]
    return b'%s,"crc":"%08x"}\n' % (body, zlib.crc32(body))


def is_intact(raw: bytes) -> bool:
    """Whether a line, without its end, has the checksum that it says."""
    return raw[-_CHECKSUM_BYTES:] == b',"crc":"%08x"}' % zlib.crc32(raw[:-_CHECKSUM_BYTES])


def round_trip(value: Any) -> Any:
    """Plain data as it will be read back: tuples as lists, keys as text."""
    return orjson.loads(orjson.dumps(value, option=_OPTIONS))


def encode_proposal(trial: Trial) -> dict[str, Any]:
    proposal = {name: _encode(value) for name, value in vars(trial.proposal).items() if name != "plan"}
    return {"trial": trial.id, **trial.plan.to_dict(), **proposal, "proposed_at": trial.proposed_at}


def encode_result(trial: Trial) -> dict[str, Any]:
    """The record of what became of a trial."""
    result = {"reason": trial.reason} if trial.evaluation is None else _encode(vars(trial.evaluation))
    return {"trial": trial.id, "status": trial.status, **result, "finished_at": trial.finished_at}


def _encode(value: Any) -> Any:
    """Numbers as text where they are NaN or infinite, which JSON does not know."""
    if isinstance(value, Mapping):
        return {name: _encode(item) for name, item in value.items()}
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def _read_proposal(record: Mapping[str, Any]) -> Trial:
    origin, seed = record["origin"], record["seed"]
    if type(origin) is not str or type(seed) is not int:
        raise ValueError("origin must be text, and seed a whole number")
    predicted = (_read_number(record[name]) for name in ("predicted_loss", "predicted_std"))
    proposal = Proposal(Plan.from_dict(record), float(record["fidelity"]), seed, origin, *predicted)
    return Trial(_read_id(record), proposal, proposed_at=float(record["proposed_at"]))


def _read_result(trial: Trial, record: Mapping[str, Any]) -> Trial:
    status, outcome = record["status"], dict[str, Any]()
    if status == "done":
        found = Evaluation(**{field.name: record[field.name] for field in fields(Evaluation)})
        outcome["evaluation"] = normalize_evaluation(found)
    elif status == "failed":
        outcome["reason"] = str(record["reason"])
    else:
        raise ValueError(f"status is {shorten(status)}")
    return replace(trial, status=status, finished_at=_read_number(record["finished_at"]), **outcome)


def _read_id(record: Mapping[str, Any]) -> int:
    number = record["trial"]
    if type(number) is not int or not 0 <= number < _MAX_ID:
        raise ValueError(f"trial is {shorten(number)}, a number from 0 up is needed")
    return number


def _read_number(value: Any) -> float | None:
    return None if value is None else float(value)


def describe_briefly(error: BaseException) -> str:
    """An exception with its type in one short line."""
    return one_line(f"{type(error).__name__}: {error}", 200)
