"""What a report shows of one run, gathered once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qra_search.app.compare import Comparison
from qra_search.app.config import RunConfig
from qra_search.app.folder import RunFolder
from qra_search.app.report.finding import Finding, find_evaluated
from qra_search.evaluation.tuning_record import TuningRecord
from qra_search.space.serialization import read_plan
from qra_search.space.space import Plan
from qra_search.study.result import SearchResult


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
    def read(cls, run: RunFolder, result: SearchResult | None = None) -> RunData:
        """Read a run's folder, but for the result if it is at hand; raises BadInput if no search has begun there, or
        one of its files is damaged."""
        config = run.config() if run.config_file.is_file() else None
        result = run.result() if result is None else result
        if run.plan_file.is_file():
            read_plan(result.space, run.plan_file)
        records = tuple(run.records())
        return cls(str(run.path), run.name, result, run.identity(), config, records, run.comparison())

    @property
    def finding(self) -> Finding | None:
        return self.comparison or find_evaluated(self.result)

    @property
    def plan(self) -> Plan | None:
        """The tuned plan, or the run's."""
        finding = self.finding
        return self.result.choose_plan() if finding is None else finding.chosen.plan

    @property
    def seconds(self) -> float:
        """Time spent in the sensitivities and in evaluations."""
        own = self.result.sensitivities.seconds if self.result.sensitivities else 0.0
        return own + sum(t.evaluation.seconds for t in self.result.trials if t.evaluation is not None)
