"""Saves what can be saved of a damaged trial log, and says what was lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qra_search.log import carve, logformat
from qra_search.log.trial import from_row
from qra_search.log.trial_log import LogMismatch, TrialLog

EXPECTED_HEADER = ("space", "evaluator", "budgets", "seed", "space_data", "study", "prior")
SALVAGED = "salvaged"
_REALS = (2, 9, 10)


@dataclass(frozen=True)
class Salvage:
    """What a damaged log still holds; every row of it has been checked against its checksum.

    Attributes:
        rows: trials as stored, by their old number; those whose result was damaged are set back to running.
        results_lost: old numbers of these: they are evaluated again.
        trials_lost: old numbers of which nothing is left, as far as later ones tell.
        header: the header's entries that are whole.
        header_lost: entries that a log has and this one has not (a `prior` only where one was measured).
    """

    rows: dict[int, logformat.Row] = field(default_factory=dict)
    results_lost: tuple[int, ...] = ()
    trials_lost: tuple[int, ...] = ()
    header: dict[str, Any] = field(default_factory=dict)
    header_lost: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for people."""
        lost = [
            f"{len(numbers)} {what} ({_list(numbers)})"
            for numbers, what in ((self.results_lost, "results"), (self.trials_lost, "trials"))
            if numbers
        ]
        if self.header_lost:
            lost.append(f"header entries {', '.join(self.header_lost)}")
        return f"{len(self.rows)} trials can be saved; lost: {'; '.join(lost) or 'nothing known'}"


def examine(path: str | Path) -> Salvage:
    """What can be saved of a log; the file is only read."""
    rows: dict[int, logformat.Row] = {}
    damaged: set[int] = set()
    header: dict[str, Any] = {}
    for number, columns in carve.rows(path):
        if len(columns) == logformat.COLUMNS:
            row = _trial_row(number, columns)
            if row is None:
                damaged.add(number)
            elif _better(row, rows.get(number)):
                rows[number] = row
        elif len(columns) == 3 and all(isinstance(c, str) for c in columns):
            key, text, checksum = columns
            if checksum == logformat.digest(key, text):
                header[key] = json.loads(text)
    unfinished = {n for n, row in rows.items() if row[6] == "lost"}
    rows = {n: _running(row) if n in unfinished else row for n, row in sorted(rows.items())}
    last = max([*rows, -1])
    return Salvage(
        rows,
        tuple(sorted(unfinished)),
        tuple(n for n in range(last + 1) if n not in rows),
        header,
        tuple(key for key in EXPECTED_HEADER if key not in header),
    )


def salvage(path: str | Path, out: str | Path) -> Salvage:
    """Write what can be saved of a log into a new one, which a search can go on with.

    Trials are numbered anew without gaps. The new log's header says, under `salvaged`, what was lost.

    Raises:
        LogMismatch: `out` exists, or nothing can be saved.
    """
    found = examine(path)
    if not found.rows and not found.header:
        raise LogMismatch(f"nothing can be saved from {path}: no row of a trial log is left in it")
    lost = {name: list(getattr(found, name)) for name in ("results_lost", "trials_lost", "header_lost")}
    with new_log(out) as log:
        for key, value in found.header.items():
            if key != "schema_version":
                log.set_meta(key, value)
        log.set_meta(SALVAGED, lost)
        log.append(map(from_row, found.rows.values()))
    return found


@contextmanager
def new_log(path: str | Path) -> Iterator[TrialLog]:
    """A log to be written in a `with` block, which leaves it whole or, where it is broken off, not at all.

    Raises:
        LogMismatch: there is something at the path.
    """
    if Path(path).exists():
        raise LogMismatch(f"{path} exists already: give a path that is free")
    try:
        with TrialLog(path) as log:
            yield log
    except BaseException:
        for suffix in ("", "-wal", "-shm", ".lock"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        raise


def _trial_row(number: int, columns: tuple[Any, ...]) -> logformat.Row | None:
    """The row where its proposal is whole, with status `lost` where its result is not; None otherwise."""
    row = [number, *columns[1:]]
    for i in _REALS:
        row[i] = float(row[i]) if isinstance(row[i], int) else row[i]  # stored short where it has no fraction
    proposal, result = logformat.intact(row)
    if not proposal:
        return None
    return tuple(row) if result else (*row[:6], "lost", *row[7:])


def _better(row: logformat.Row, known: logformat.Row | None) -> bool:
    rank = {"running": 0, "lost": 1, "done": 2, "failed": 2}
    return known is None or rank[row[6]] >= rank[known[6]]


def _running(row: logformat.Row) -> logformat.Row:
    return logformat.sealed((*row[:6], "running", None, None, row[9], None))


def _list(numbers: tuple[int, ...], most: int = 8) -> str:
    def parts() -> Iterator[str]:
        yield from map(str, numbers[:most])
        if len(numbers) > most:
            yield "..."

    return ", ".join(parts())
