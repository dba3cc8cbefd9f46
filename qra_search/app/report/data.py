"""What a report shows of one run, gathered once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qra_search.app.compare import Comparison
from qra_search.app.config import RunConfig
from qra_search.app.folder import RunFolder, Snapshot
from qra_search.app.report.finding import Finding, find_evaluated
from qra_search.schemas import Plan, TuningRecord
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
    def read(cls, run: RunFolder | Snapshot) -> RunData:
        """Of a run that was read, or is; raises BadInput if no search has begun there, or a file is damaged."""
        run = run if isinstance(run, Snapshot) else run.read()
        path, name = str(run.folder.path), run.folder.name
        return cls(path, name, run.result, run.identity, run.config, run.records, run.comparison())

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
