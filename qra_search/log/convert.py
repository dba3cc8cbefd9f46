"""Reads the SQLite logs of older versions once."""

from __future__ import annotations

import json
import sqlite3
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

OLD_VERSIONS = (1, 2)
_COLUMNS = "id, plan, fidelity, seed, origin, predicted, status, result, reason, proposed_at, finished_at"


def convert(path: str | Path, out: str | Path) -> int:
    """Make a log of this version of an older one; returns the number of its trials.

    Raises:
        LogDamaged: the old log is not what was written.
        LogMismatch: it is no old log, or `out` exists.
    """
    path = Path(path)
    if not path.is_file():
        raise LogMismatch(f"{path} does not exist: give a log of an older version")
    try:
        header, trials = _read(path)
        write_log(out, header, trials)
    except LogMismatch:
        raise
    except (*NOT_A_LOG, sqlite3.Error, RecursionError) as error:
        raise LogDamaged(f"{path} is not a readable log of an older version ({short(error)})") from None
    return len(trials)


def _read(path: Path) -> tuple[dict[str, Any], list[Trial]]:
    """Header and trials."""
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
    if status not in ("running", "done", "failed") or (status == "done") != (result is not None):
        raise ValueError(f"status is {status!r}")
    evaluation = None if result is None else plain(Evaluation(**json.loads(result)))
    return Trial(number, proposal, status, evaluation, reason or "", proposed_at, finished_at)
