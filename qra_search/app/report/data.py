"""What a report shows of one run, gathered once."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qra_search.app.compare import Comparison, classify_record
from qra_search.app.config import RunConfig
from qra_search.app.folder import RunFolder, Snapshot
from qra_search.app.report.finding import Finding, find_evaluated
from qra_search.app.report.formatting import format_role_label
from qra_search.app.report.live import BestSoFar
from qra_search.app.tuning_folder import CURVE_FILE
from qra_search.schemas import Plan, TuningRecord
from qra_search.study.result import SearchResult

TRACES = 4
"""Most traces that are drawn if no budget was named."""
CURVES_SHOWN = 8
"""Tunings whose curves are shown."""
CURVE_POINTS = 60
"""Most points of a curve."""
SMOOTHED = 6
"""A point of a curve is the mean of a share of all steps: one in so many."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One full tuning: its training loss, smoothed, and its validation loss where it was measured, by step."""

    name: str
    loss: tuple[Point, ...]
    validation: tuple[Point, ...]


@dataclass(frozen=True)
class RunData:
    """One run as a report sees it."""

    folder: str
    name: str
    result: SearchResult
    identity: dict[str, Any]
    config: RunConfig | None
    records: tuple[TuningRecord, ...] = ()
    comparison: Comparison | None = None

    @classmethod
    def read(cls, run: RunFolder | Snapshot) -> RunData:
        """Of a run that was read, or is; raises BadInput if no search has begun there, or a file is damaged."""
        run = run if isinstance(run, Snapshot) else run.read()
        path, name = str(run.folder.path), run.folder.name
        return cls(path, name, run.result, run.identity, run.config, run.records, run.comparison())

    @cached_property
    def finding(self) -> Finding | None:
        return self.comparison or find_evaluated(self.result)

    @cached_property
    def curves(self) -> list[Curve]:
        """Loss curves of the full tunings, those that are running among them; without a finite loss there is none."""
        plan, space = None if self.comparison is None else self.comparison.chosen.plan, self.result.space
        names = {
            r.id: format_role_label(classify_record(r, space, plan), r.plan, space) for r in self.records
        }
        if any(record.seed != self.records[0].seed for record in self.records):
            names = {record.id: f"{names[record.id]}, seed {record.seed}" for record in self.records}
        counts = Counter(names.values())
        names = {id: name if counts[name] == 1 else f"{name} ({id})" for id, name in names.items()}
        files = sorted(Path(self.folder).glob(f"tunings/*/{CURVE_FILE}"))
        curves = [
            read_curve(file, names.get(file.parent.name, f"running: {file.parent.name}")) for file in files
        ]
        return [curve for curve in curves if curve.loss][:CURVES_SHOWN]

    @cached_property
    def plan(self) -> Plan | None:
        """The tuned plan, or the run's."""
        if self.finding is not None:
            return self.finding.chosen.plan
        return self.result.choose_plan()

    @cached_property
    def origins(self) -> tuple[str, ...]:
        """Where proposals came from, in the order in which they first did."""
        return tuple(dict.fromkeys(t.proposal.origin or "proposal" for t in self.result.trials))

    @property
    def seconds(self) -> float:
        """Time spent in the sensitivities and in evaluations."""
        own = self.result.sensitivities.seconds if self.result.sensitivities else 0.0
        return own + sum(t.evaluation.seconds for t in self.result.trials if t.evaluation is not None)

    @cached_property
    def spent(self) -> tuple[float, ...]:
        """Evaluations spent after each trial."""
        return tuple(itertools.accumulate(t.fidelity for t in self.result.trials))

    @cached_property
    def traces(self) -> dict[int, list[Point]]:
        """Best mean loss after each trial against the evaluations spent, by budget, or by a few sizes of the front, the
        largest among them."""
        front = [c.memory_bytes for c in self.result.front]
        budgets = self.result.memory_budgets or front[:: -math.ceil(len(front) / TRACES) or -1][::-1]
        so_far, traces = BestSoFar(), {budget: list[Point]() for budget in budgets}
        for trial, spent in zip(self.result.trials, self.spent, strict=True):
            so_far.add(trial)
            for budget, points in traces.items():
                if (best := so_far.find_lowest_loss(budget)) is not None:
                    points.append((spent, best))
        return {budget: points for budget, points in traces.items() if points}


def smooth_curve(points: Sequence[Point]) -> tuple[Point, ...]:
    """Running means of a curve over a sixth of its steps, at no more than `CURVE_POINTS` of them."""
    half, step = len(points) // (2 * SMOOTHED), math.ceil(len(points) / CURVE_POINTS) or 1
    around = {
        at: [y for _, y in points[max(0, at - half) : at + half + 1]] for at in range(0, len(points), step)
    }
    return tuple((points[at][0], sum(losses) / len(losses)) for at, losses in around.items())


def read_curve(file: Path, name: str) -> Curve:
    """The curve of a tuning, as far as its lines are whole and finite."""
    losses, validation = [], []
    for line in file.read_text().splitlines():
        try:
            row = json.loads(line)
            step, loss, measured = (
                int(row["step"]),
                float(row["loss"]),
                float(row.get("validation_loss", math.nan)),
            )
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ):  # of a running tuning the last is half a line
            continue
        losses += [(step, loss)] if math.isfinite(loss) else []
        validation += [(step, measured)] if math.isfinite(measured) else []
    return Curve(name, smooth_curve(losses), tuple(validation))
