"""Reads logs of older versions once: SQLite (versions 1 and 2), and the JSON lines of `qra-log/1`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from qra_search.evaluation.evaluator import Evaluation
from qra_search.log.errors import LogDamaged, LogMismatch
from qra_search.log.lines import NOT_A_LOG, short
from qra_search.log.logtools import write_log
from qra_search.log.trial import Proposal, Trial, plain
from qra_search.space.space import Plan

OLD_FORMAT = "qra-log/1"
OLD_VERSIONS = (1, 2)
_COLUMNS = "id, plan, fidelity, seed, origin, predicted, status, result, reason, proposed_at, finished_at"
Old = tuple[dict[str, Any], list[Trial]]
"""Header and trials of a log."""


def convert(path: str | Path, out: str | Path) -> int:
    """Make a log of this version of an older one; returns the number of its trials.

    Raises:
        LogDamaged: the old log is not what was written.
        LogMismatch: it is no old log, or `out` exists.
    """
    if not Path(path).is_file():
        raise LogMismatch(f"{path} does not exist: give a log of an older version")
    with open(path, "rb") as file:
        is_sqlite = file.read(16) == b"SQLite format 3\0"
    try:
        header, trials = _sqlite(Path(path)) if is_sqlite else _json_lines(Path(path))
        write_log(out, header, trials)
    except LogMismatch:
        raise
    except (*NOT_A_LOG, sqlite3.Error, RecursionError) as error:
        raise LogDamaged(f"{path} is not a readable log of an older version ({short(error)})") from None
    return len(trials)


def _sqlite(path: Path) -> Old:
    with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as db:
        (fault,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if fault != "ok":
            raise ValueError(fault)
        header = {key: json.loads(value) for key, value in db.execute("SELECT key, value FROM meta ORDER BY rowid")}
        version = header.pop("schema_version")
        if version not in OLD_VERSIONS:
            raise LogMismatch(f"{path} has log version {version!r}: versions {OLD_VERSIONS} can be converted")
        return header, [_from_row(row) for row in db.execute(f"SELECT {_COLUMNS} FROM trials ORDER BY id")]


def _from_row(row: tuple[Any, ...]) -> Trial:
    number, plan, fidelity, seed, origin, predicted, status, result, reason, proposed_at, finished_at = row
    bits, ranks = (tuple(map(int, part.split(","))) for part in plan.split("|"))
    proposal = Proposal(Plan(bits, ranks), fidelity, seed, origin, *json.loads(predicted))
    return _trial(number, proposal, status, result and json.loads(result), reason or "", proposed_at, finished_at)


def _json_lines(path: Path) -> Old:
    with path.open(encoding="utf-8") as file:
        lines = _objects(file)
        _, first = next(lines, (0, {}))
        if first.get("format") != OLD_FORMAT:
            raise LogMismatch(
                f"{path} is no log of an older version: those are SQLite files, or begin with {OLD_FORMAT}"
            )
        trials: list[Trial] = []
        for number, data in lines:
            try:
                trials.append(_from_dict(len(trials), data))
            except NOT_A_LOG as error:
                raise LogDamaged(f"{path}: line {number} is no trial ({short(error)})") from None
    return dict(first["header"]), trials


def _objects(file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield number, dict(json.loads(line))


def _from_dict(number: int, data: Mapping[str, Any]) -> Trial:
    proposal = Proposal(
        Plan(tuple(data["bits"]), tuple(data["ranks"])),
        float(data["fidelity"]),
        data["seed"],
        data["origin"],
        data["predicted_loss"],
        data["predicted_std"],
    )
    times = data["proposed_at"], data["finished_at"]
    return _trial(number, proposal, data["status"], data["evaluation"], data["reason"], *times)


def _trial(
    number: int,
    proposal: Proposal,
    status: Any,
    evaluation: Mapping[str, Any] | None,
    reason: str,
    proposed_at: float,
    finished_at: float | None,
) -> Trial:
    if status not in ("running", "done", "failed") or (status == "done") != (evaluation is not None):
        raise ValueError(f"status is {status!r}")
    done = None if evaluation is None else plain(Evaluation(**evaluation))
    return Trial(number, proposal, status, done, reason, proposed_at, finished_at)
