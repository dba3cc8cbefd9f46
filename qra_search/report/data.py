"""What a report shows of one run, gathered once."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qra_search.allocate.solve import Allocation
from qra_search.config import RunConfig
from qra_search.evaluation.tuning_record import TuningRecord
from qra_search.report.finding import Finding, find_result, headline
from qra_search.report.formatting import role_name
from qra_search.report.layout import Layout, layout
from qra_search.report.progress import BestSoFar
from qra_search.runs.comparison import Comparison, role_of
from qra_search.runs.folder import RunFolder
from qra_search.runs.plan_file import read_plan
from qra_search.runs.tuning_folder import CURVE_FILE
from qra_search.space.space import Plan
from qra_search.study.result import SearchResult

TRACES = 4
"""Most traces that are drawn if no budget was named."""
CURVES_SHOWN = 8
"""Tunings whose curves are shown."""
CURVE_POINTS = 60
"""Points of a curve; of more steps each is the mean of several."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Trace:
    """Best mean loss within a budget against the evaluations spent."""

    budget: int
    points: tuple[Point, ...]


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
    def read(cls, run: RunFolder) -> RunData:
        """Read a run's folder.

        Raises:
            BadInput: no search has begun there, or one of its files is damaged.
        """
        config = run.config() if run.config_file.is_file() else None
        result = run.result()
        if run.plan_file.is_file():
            read_plan(result.space, run.plan_file)
        return cls.of_result(run, result, run.identity(), config)

    @classmethod
    def of_result(
        cls, run: RunFolder, result: SearchResult, identity: dict[str, Any], config: RunConfig | None
    ) -> RunData:
        """A run whose result is at hand; its tunings are read."""
        return cls(str(run.path), run.name, result, identity, config, tuple(run.records()), run.comparison())

    @property
    def planned(self) -> float | None:
        """Evaluations that the search may spend; None if nothing says it."""
        return self.identity.get("evaluations")

    @cached_property
    def finding(self) -> Finding | None:
        return find_result(self.result, self.comparison)

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """Loss curves of the full tunings."""
        return read_curves(self.folder, {record.id: self._name(record) for record in self.records})

    def _name(self, record: TuningRecord) -> str:
        plan = None if self.comparison is None else self.comparison.tuned.plan
        role = role_of(record, self.result.space, plan)
        return f"{role_name(role, record.plan, self.result.space)}, seed {record.seed}"

    @cached_property
    def headline(self) -> str:
        """The finding in a sentence, or what is predicted before anything was evaluated."""
        return headline(self.result, self.comparison)

    @cached_property
    def allocation(self) -> Allocation | None:
        """The allocation within the largest budget; None without a budget or without sensitivities."""
        return self.result.allocation() if self.result.memory_budgets else None

    @cached_property
    def layout(self) -> Layout:
        return layout(self.result.space)

    @cached_property
    def plan(self) -> Plan | None:
        """The tuned plan, or the run's."""
        if self.finding is not None:
            return self.finding.chosen.plan
        return self.result.chosen() if self.result.has_budget_or_candidates else None

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
    def traces(self) -> tuple[Trace, ...]:
        """One trace for each budget, or for a few sizes of the front if none was named."""
        front = [c.memory_bytes for c in self.result.front]
        budgets = self.result.memory_budgets or front[:: math.ceil(len(front) / TRACES) or 1]
        return tuple(Trace(budget, self._trace(budget)) for budget in budgets)

    def _trace(self, budget: int) -> tuple[Point, ...]:
        points: list[Point] = []
        so_far = BestSoFar()
        for trial, spent in zip(self.result.trials, self.spent, strict=True):
            so_far.add(trial)
            if (found := so_far.best(budget)) and (not points or found[1] != points[-1][1]):
                points.append((spent, found[1]))
        if points:
            points.append((max(self.spent[-1], points[-1][0]), points[-1][1]))
        return tuple(points)


def read_curves(folder: str | Path, names: Mapping[str, str]) -> tuple[Curve, ...]:
    """The loss curves of a run's tunings; those without a finite loss are left out.

    Args:
        names: of finished tunings, by id; others go by their id.
    """
    files = sorted(Path(folder).glob(f"tunings/*/{CURVE_FILE}"))
    curves = (_curve(names.get(f.parent.name, f.parent.name), f.read_text().splitlines()) for f in files)
    return tuple(curve for curve in curves if curve.loss)[:CURVES_SHOWN]


def smoothed(points: Sequence[Point], most: int = CURVE_POINTS) -> tuple[Point, ...]:
    """At most so many points, each the mean of as many consecutive ones of those given."""
    size = math.ceil(len(points) / most) or 1
    parts = [points[at : at + size] for at in range(0, len(points), size)]
    return tuple((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts)


def _curve(name: str, lines: Sequence[str]) -> Curve:
    losses, validation = [], []
    for line in lines:
        try:
            row = json.loads(line)
            step, loss, measured = int(row["step"]), float(row["loss"]), float(row.get("validation_loss", math.nan))
        except (ValueError, LookupError, TypeError, AttributeError):  # of a running tuning the last is half a line
            continue
        losses += [(step, loss)] if math.isfinite(loss) else []
        validation += [(step, measured)] if math.isfinite(measured) else []
    return Curve(name, smoothed(losses), tuple(validation))
