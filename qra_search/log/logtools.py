"""What can be done with trial logs besides searching: check, export, import, merge."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from qra_search.evaluation.evaluator import Evaluation, EvaluationFailed
from qra_search.log.locks import WriterLock, describe_holder
from qra_search.log.recorded import SPACE, recorded_space
from qra_search.log.salvage import Salvage, examine, new_log
from qra_search.log.trial import Proposal, Trial, evaluation_to_dict, plain
from qra_search.log.trial_log import LogDamaged, LogMismatch, TrialLog
from qra_search.space.space import Plan, SearchSpace

JSONL_FORMAT = "qra-log/1"
MAX_LINE = 64 << 20
MAX_TRIALS = 10_000_000
SAME_SEARCH = ("space", "evaluator")
"""Header entries that logs must agree on to be put together: what was searched, and what measured it."""
_STATUSES = ("done", "failed", "running")


@dataclass(frozen=True)
class LogReport:
    """What `check` found.

    Attributes:
        fault: what is wrong, one line; empty for a sound log.
        statuses: number of trials by status; of a damaged log, of what can be saved.
        salvage: of a damaged log, what can be saved.
        writer: who writes it now; empty where nobody does.
    """

    path: str
    fault: str
    statuses: dict[str, int]
    salvage: Salvage | None = None
    writer: str = ""

    @property
    def ok(self) -> bool:
        return not self.fault

    def lines(self) -> list[str]:
        """The report for people."""
        counts = ", ".join(f"{self.statuses[s]} {s}" for s in _STATUSES if self.statuses.get(s)) or "no trials"
        lines = [f"{self.path}: {'sound' if self.ok else 'damaged'}, {counts}"]
        if self.fault:
            lines.append(self.fault)
        if self.salvage is not None:
            lines.append(self.salvage.describe())
        if self.writer:
            lines.append(f"written now by {self.writer}")
        return lines


def check(path: str | Path) -> LogReport:
    """Read every byte of a log.

    Raises:
        LogMismatch: there is no log, or one of another version.
    """
    if not Path(path).exists():
        raise LogMismatch(f"{path} does not exist")
    lock = WriterLock(f"{path}.lock")
    writer = "" if lock.is_free() else describe_holder(lock.holder())
    try:
        with TrialLog(path) as log:
            return LogReport(str(path), "", dict(Counter(t.status for t in log)), writer=writer)
    except LogDamaged as error:
        found = examine(path)
        return LogReport(str(path), str(error), dict(Counter(r[6] for r in found.rows.values())), found, writer)


def export_jsonl(log: TrialLog, file: IO[str]) -> int:
    """Write a log as JSON lines: the header, then a trial a line; returns the number of trials."""
    header = {key: log.meta(key) for key in log.meta_keys() if key != "schema_version"}
    file.write(json.dumps({"format": JSONL_FORMAT, "header": header}) + "\n")
    for trial in log:
        file.write(json.dumps(_to_dict(trial)) + "\n")
    return len(log)


def export_parquet(log: TrialLog, path: str | Path) -> int:
    """Write the trials of a log as a parquet table, one column a field; returns their number."""
    import pyarrow
    import pyarrow.parquet

    rows = []
    for trial in log:
        row = _to_dict(trial)
        evaluation = row.pop("evaluation") or {}
        row |= {f"metric_{name}": value for name, value in (evaluation.pop("metrics", None) or {}).items()}
        row |= {name: evaluation.get(name) for name in ("loss", "memory_bytes", "seconds", "cost")}
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    header = {key: log.meta(key) for key in log.meta_keys() if key != SPACE}
    table = table.replace_schema_metadata({"qra": json.dumps(header)})
    pyarrow.parquet.write_table(table, str(path))
    return len(rows)


def lines_of(file: IO[str]) -> Iterator[str]:
    """Lines of a text file, none read further than is allowed."""
    return iter(lambda: file.readline(MAX_LINE + 1), "")


def import_jsonl(lines: Iterable[str], out: str | Path) -> int:
    """Make a log from what `export_jsonl` wrote; returns the number of trials.

    Every trial is checked: its plan is of the space, its bytes are those of its plan, its loss is finite.

    Raises:
        LogMismatch: `out` exists, or a line is not what it must be; the message gives its number.
    """
    source = _numbered(lines)
    number, first = next(source, (1, {}))
    header = first.get("header")
    if first.get("format") != JSONL_FORMAT or not isinstance(header, dict):
        raise LogMismatch(f"line {number} is no header of the format {JSONL_FORMAT}: export the log again")
    with TrialLog() as scratch:
        scratch.set_meta(SPACE, header.get(SPACE))
        try:
            space = recorded_space(scratch)
            space.memory  # noqa: B018 - its tables are part of what must be right
        except (LogMismatch, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise LogMismatch(f"line {number} holds no search space ({_short(error)})") from None
    trials = []
    for number, data in source:
        try:
            trials.append(_from_dict(data, space))
        except (EvaluationFailed, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise LogMismatch(f"line {number} is no trial of this log ({_short(error)})") from None
        if len(trials) > MAX_TRIALS:
            raise LogMismatch(f"more than {MAX_TRIALS} trials: split the file")
    with new_log(out) as log:
        for key, value in header.items():
            log.set_meta(str(key), value)
        log.append(trials)
    return len(trials)


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
        if not Path(path).exists():
            raise LogMismatch(f"{path} does not exist")
    header: dict[str, Any] = {}
    kept: dict[tuple[str, float, int], Trial] = {}
    for path in paths:
        with TrialLog(path) as log:
            own = {key: log.meta(key) for key in log.meta_keys() if key != "schema_version"}
            for key in SAME_SEARCH:
                if header and own.get(key) != header.get(key):
                    raise LogMismatch(
                        f"{path} has another {key} than {paths[0]}: only runs of one search can be merged"
                    )
            header = header or own
            for trial in log:
                known = kept.get(trial.proposal.key)
                if trial.status != "running" and (known is None or (trial.done and not known.done)):
                    kept[trial.proposal.key] = trial
    with new_log(out) as log:
        for key, value in header.items():
            log.set_meta(key, value)
        log.append(kept.values())
    return len(kept)


def _to_dict(trial: Trial) -> dict[str, Any]:
    proposal = trial.proposal
    return {
        "bits": list(proposal.plan.bits),
        "ranks": list(proposal.plan.ranks),
        "fidelity": proposal.fidelity,
        "seed": proposal.seed,
        "origin": proposal.origin,
        "predicted_loss": proposal.predicted_loss,
        "predicted_std": proposal.predicted_std,
        "status": trial.status,
        "reason": trial.reason,
        "proposed_at": trial.proposed_at,
        "finished_at": trial.finished_at,
        "evaluation": None if trial.evaluation is None else evaluation_to_dict(trial.evaluation),
    }


def _from_dict(data: dict[str, Any], space: SearchSpace) -> Trial:
    bits = tuple(b if isinstance(b, str) else _whole(b) for b in data["bits"])
    plan = Plan(bits, tuple(map(_whole, data["ranks"])))
    size = space.memory_bytes(plan)
    proposal = Proposal(
        plan,
        _number(data["fidelity"], "fidelity"),
        _whole(data["seed"]),
        str(data["origin"]),
        _optional(data["predicted_loss"], "predicted_loss"),
        _optional(data["predicted_std"], "predicted_std"),
    )
    if not 0 < proposal.fidelity <= 1:
        raise ValueError(f"fidelity is {proposal.fidelity}")
    status = data["status"]
    if status not in _STATUSES:
        raise ValueError(f"status is {status!r}")
    evaluation = None
    if status == "done":
        evaluation = plain(Evaluation(**data["evaluation"]))
        if not math.isfinite(evaluation.loss) or evaluation.memory_bytes != size:
            raise ValueError(f"loss {evaluation.loss}, {evaluation.memory_bytes} bytes where the space counts {size}")
        evaluation = replace(evaluation, metrics=dict(evaluation.metrics))
    finished_at = _optional(data["finished_at"], "finished_at") if status != "running" else None
    reason = str(data["reason"]) if status == "failed" else ""
    return Trial(0, proposal, status, evaluation, reason, _number(data["proposed_at"], "proposed_at"), finished_at)


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LINE:
            raise LogMismatch(f"line {number} has {len(line)} characters, at most {MAX_LINE} are read")
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LogMismatch(f"line {number} is not JSON ({_short(error)})") from None
        if not isinstance(data, dict):
            raise LogMismatch(f"line {number} holds a {type(data).__name__}, a mapping is needed")
        yield number, data


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, a finite number is needed")
    return float(value)


def _optional(value: Any, name: str) -> float | None:
    return None if value is None else _number(value, name)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63:
        raise ValueError(f"{value!r} is given where a whole number of 64 bits is needed")
    return value


def _short(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else text[:197] + "..."
