"""The trial log: every proposal and what became of it, in one crash-safe SQLite file; the only state of a search."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from qra_search.evaluation import Evaluation
from qra_search.space import Plan

SCHEMA_VERSION = 1
MEMORY = ":memory:"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
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
    finished_at REAL
);
"""

Status = Literal["running", "done", "failed"]


@dataclass(frozen=True)
class Proposal:
    """What a strategy asks to be evaluated.

    Attributes:
        origin: why it was proposed (`uniform`, `sweep`, `confirm`, ...), for the record.
        predicted_loss, predicted_std: what the strategy expected, where it has a model.
    """

    plan: Plan
    fidelity: float = 1.0
    seed: int = 0
    origin: str = ""
    predicted_loss: float | None = None
    predicted_std: float | None = None

    @property
    def key(self) -> tuple[str, float, int]:
        """Equal for proposals that would repeat the same evaluation."""
        return self.plan.key, self.fidelity, self.seed


@dataclass(frozen=True)
class Trial:
    """One line of the log. `id` counts from 0 in the order of proposing."""

    id: int
    proposal: Proposal
    status: Status = "running"
    evaluation: Evaluation | None = None
    reason: str = ""
    proposed_at: float = 0.0
    finished_at: float | None = None

    @property
    def plan(self) -> Plan:
        return self.proposal.plan

    @property
    def fidelity(self) -> float:
        return self.proposal.fidelity

    @property
    def seed(self) -> int:
        return self.proposal.seed

    @property
    def done(self) -> bool:
        return self.status == "done"

    @property
    def loss(self) -> float:
        """Observed loss; only of a finished trial."""
        if self.evaluation is None:
            raise ValueError(f"trial {self.id} is {self.status} and has no loss")
        return self.evaluation.loss

    @property
    def charged(self) -> float:
        """Full evaluations that the trial costs; one that runs or failed is charged its fidelity."""
        return self.evaluation.charged if self.evaluation is not None else self.fidelity


class LogMismatch(ValueError):
    """The log belongs to another space, evaluator or version."""


class TrialLog:
    """Trials in the order in which they were proposed.

    Every proposal is committed before it is run, every result before the next proposal is asked for, so a
    kill at any moment loses at most the evaluations in flight, which `running` then names.

    Args:
        path: SQLite file, made when missing; `:memory:` keeps nothing.
    """

    def __init__(self, path: str | Path = MEMORY):
        self.path = str(path)
        if self.path != MEMORY:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        self._trials: list[Trial] = []
        try:
            self._open()
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            version = self.meta("schema_version")
        except sqlite3.DatabaseError as error:
            raise LogMismatch(
                f"{self.path} is not a readable trial log ({error}): move it away or restore a copy"
            ) from None
        if version is None:
            self.set_meta("schema_version", SCHEMA_VERSION)
        elif version != SCHEMA_VERSION:
            raise LogMismatch(f"{self.path} has log version {version}, this qra reads version {SCHEMA_VERSION}")
        self._trials = [_from_row(row) for row in self._db.execute("SELECT * FROM trials ORDER BY id")]

    # -- reading -------------------------------------------------------------------------------
    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials, in order."""
        return tuple(self._trials)

    def __len__(self) -> int:
        return len(self._trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials)

    @property
    def running(self) -> tuple[Trial, ...]:
        """Trials without a result: in flight, or lost with a killed process."""
        return tuple(t for t in self._trials if t.status == "running")

    def meta(self, key: str) -> Any:
        """A value of the log's header; None where there is none."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    # -- writing -------------------------------------------------------------------------------
    def set_meta(self, key: str, value: Any) -> None:
        """Write a value of the header."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def bind(self, **identity: Any) -> None:
        """Write the identity of the search, or check it where the log already has one.

        Raises:
            LogMismatch: a value differs; the message gives both.
        """
        for key, value in identity.items():
            known = self.meta(key)
            value = json.loads(json.dumps(value))
            if known is None:
                self.set_meta(key, value)
            elif known != value:
                raise LogMismatch(
                    f"{self.path} was written with {key} {_difference(known, value)}: "
                    f"use another output folder, or the settings that it was begun with"
                )

    def propose(self, proposal: Proposal) -> Trial:
        """Record a proposal before it is run."""
        trial = Trial(len(self._trials), proposal, proposed_at=time.time())
        predicted = [proposal.predicted_loss, proposal.predicted_std]
        self._db.execute(
            "INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                trial.id,
                proposal.plan.key,
                proposal.fidelity,
                proposal.seed,
                proposal.origin,
                json.dumps(predicted),
                "running",
                None,
                None,
                trial.proposed_at,
                None,
            ),
        )
        self._trials.append(trial)
        return trial

    def finish(self, trial_id: int, evaluation: Evaluation) -> Trial:
        """Record the result of a running trial."""
        return self._end(trial_id, "done", evaluation, "")

    def fail(self, trial_id: int, reason: str) -> Trial:
        """Record that a running trial failed, and why."""
        return self._end(trial_id, "failed", None, reason)

    def _end(self, trial_id: int, status: Status, evaluation: Evaluation | None, reason: str) -> Trial:
        if self._trials[trial_id].status != "running":
            raise ValueError(f"trial {trial_id} is already {self._trials[trial_id].status}: a result counts once")
        trial = replace(
            self._trials[trial_id],
            status=status,
            evaluation=evaluation,
            reason=reason,
            finished_at=time.time(),
        )
        result = None if evaluation is None else json.dumps(_evaluation_to_dict(evaluation))
        self._db.execute(
            "UPDATE trials SET status = ?, result = ?, reason = ?, finished_at = ? WHERE id = ?",
            (status, result, reason, trial.finished_at, trial_id),
        )
        self._trials[trial_id] = trial
        return trial

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> TrialLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _evaluation_to_dict(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "loss": evaluation.loss,
        "memory_bytes": int(evaluation.memory_bytes),
        "metrics": dict(evaluation.metrics),
        "seconds": evaluation.seconds,
        "fidelity": evaluation.fidelity,
        "seed": evaluation.seed,
        "cost": evaluation.cost,
    }


def _from_row(row: tuple[Any, ...]) -> Trial:
    trial_id, plan, fidelity, seed, origin, predicted, status, result, reason, proposed_at, finished_at = row
    loss, std = json.loads(predicted)
    proposal = Proposal(Plan.from_key(plan), fidelity, seed, origin, loss, std)
    evaluation = None if result is None else Evaluation(**json.loads(result))
    return Trial(trial_id, proposal, status, evaluation, reason or "", proposed_at, finished_at)


def _difference(known: Any, value: Any) -> str:
    """The first field in which two values differ, as text."""
    if isinstance(known, Mapping) and isinstance(value, Mapping):
        for key in sorted(set(known) | set(value)):
            if known.get(key) != value.get(key):
                return f"{key} = {_difference(known.get(key), value.get(key))}"
    return f"{known!r}, but now it is {value!r}"
