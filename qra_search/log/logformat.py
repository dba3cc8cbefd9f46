"""How a trial log lies on disk: its tables, the checksum of every row, and the way up from older versions."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum TEXT);
CREATE TABLE IF NOT EXISTS trials (
    id INTEGER PRIMARY KEY,
    plan TEXT NOT NULL,
    fidelity REAL NOT NULL,
    seed INTEGER NOT NULL,
    origin TEXT NOT NULL,
    predicted TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('running', 'done', 'failed')),
    result TEXT,
    reason TEXT,
    proposed_at REAL NOT NULL,
    finished_at REAL,
    proposal_sum TEXT,
    result_sum TEXT
);
"""
COLUMNS = 13
PLACES = ", ".join("?" * COLUMNS)
FINISHED = ("done", "failed")

Row = tuple[Any, ...]


def digest(*values: Any) -> str:
    """Checksum of plain values, 16 hexadecimal digits."""
    text = "\0".join([v if isinstance(v, str) else repr(v) for v in values])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def proposal_sum(row: Sequence[Any]) -> str:
    """Checksum of what was proposed: all columns that are written before an evaluation."""
    return digest(*row[:6], row[9])


def result_sum(row: Sequence[Any]) -> str:
    """Checksum of what became of a trial."""
    return digest(row[0], *row[6:9], row[10])


def sealed(row: Sequence[Any]) -> Row:
    """The first 11 columns of a trial with their two checksums."""
    return (*row[:11], proposal_sum(row), result_sum(row))


def intact(row: Sequence[Any]) -> tuple[bool, bool]:
    """Whether a row's proposal, and its result, are what was written."""
    return row[11] == proposal_sum(row), row[12] == result_sum(row)


def create(path: Path) -> None:
    """Make an empty log at once: a kill leaves no file or a whole one, so that an empty file is a damaged log."""
    partial = path.with_name(path.name + ".new")
    partial.unlink(missing_ok=True)
    db = sqlite3.connect(partial, isolation_level=None)
    try:
        prepare(db)
        db.execute("PRAGMA journal_mode=WAL")
        db.close()
        partial.replace(path)
    finally:
        db.close()
        partial.unlink(missing_ok=True)


def prepare(db: sqlite3.Connection) -> None:
    """The tables of the newest version in an empty database."""
    db.executescript(SCHEMA)
    write_meta(db, "schema_version", SCHEMA_VERSION)


def write_meta(db: sqlite3.Connection, key: str, value: Any) -> None:
    """Set one entry of the header."""
    text = json.dumps(value)
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, text, digest(key, text)))


def version_of(db: sqlite3.Connection) -> Any:
    """The version that the log was written with; None where it says none. Nothing was checked before it is read."""
    row = db.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    return json.loads(row[0]) if row is not None and isinstance(row[0], str) else None


def migrate(db: sqlite3.Connection) -> None:
    """Bring a log of any older version to this one, in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    try:
        for version in range(version_of(db), SCHEMA_VERSION):
            _STEPS[version](db)
        write_meta(db, "schema_version", SCHEMA_VERSION)
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def _add_checksums(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE meta ADD COLUMN checksum TEXT")
    for key, text in db.execute("SELECT key, value FROM meta").fetchall():
        db.execute("UPDATE meta SET checksum = ? WHERE key = ?", (digest(key, text), key))
    for column in ("proposal_sum", "result_sum"):
        db.execute(f"ALTER TABLE trials ADD COLUMN {column} TEXT")
    for row in db.execute("SELECT * FROM trials").fetchall():
        db.execute(
            "UPDATE trials SET proposal_sum = ?, result_sum = ? WHERE id = ?",
            (proposal_sum(row), result_sum(row), row[0]),
        )


_STEPS = {1: _add_checksums}
"""By the version that a step starts from."""
