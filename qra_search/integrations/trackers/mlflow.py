"""MLflow: one run of an experiment, with settings as parameters, figures as metrics, and the result as a file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_search.integrations.trackers.base import PROJECT, Tracker
from qra_search.space.serialization import plan_to_dict
from qra_search.study.result import SearchResult

LONGEST = 500
"""Characters of a parameter's value that every tracking store takes."""


class MLflowTracker(Tracker):
    """`where` is a tracking server or store, such as `sqlite:///mlflow.db`; None: what MLflow itself takes
    (`MLFLOW_TRACKING_URI`, else a database in the working folder)."""

    name = "mlflow"
    extra = "mlflow"
    package = "mlflow"

    def __init__(self, folder: Path, where: str | None):
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        super().__init__(folder, where)
        # Asked here, before a search has cost anything, not when its first figure is written.
        try:
            self.client = MlflowClient(where)
            found = self.client.get_experiment_by_name(PROJECT)
            self.experiment = found.experiment_id if found else self.client.create_experiment(PROJECT)
        except MlflowException as error:
            raise ValueError(f"tracker 'mlflow' cannot use {where or 'its default store'!r}: {error}") from None
        self.run_id = ""

    def open(self, settings: Mapping[str, Any], known: str | None) -> str:
        if known is not None:
            self.client.update_run(known, status="RUNNING")
            self.run_id = known
            return known
        self.run_id = self.client.create_run(self.experiment, run_name=self.run).info.run_id
        for name, value in settings.items():
            self.client.log_param(self.run_id, name, str(value)[:LONGEST])
        return self.run_id

    def log(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def close(self, result: SearchResult, *, complete: bool) -> None:
        self.client.log_dict(self.run_id, result.to_dict(), "result.json")
        best = result.best()
        if best is not None:
            self.client.log_dict(self.run_id, plan_to_dict(result.space, best.plan), "plan.json")
        self.client.set_terminated(self.run_id, "FINISHED" if complete else "KILLED")
