"""Weights & Biases: one run of a project, online or in files, with settings as its config and figures by step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_search.integrations.trackers.base import PROJECT, Tracker
from qra_search.space.serialization import plan_to_dict
from qra_search.study.result import SearchResult


class WandbTracker(Tracker):
    """`where` is a project; None: `qra`. Where it goes is wandb's own setting (`WANDB_MODE=offline` for files)."""

    name = "wandb"
    extra = "wandb"
    package = "wandb"

    def __init__(self, folder: Path, where: str | None):
        import wandb

        super().__init__(folder, where)
        self.wandb: Any = wandb
        self.project, self.folder = where or PROJECT, folder
        self._run: Any = None

    def open(self, settings: Mapping[str, Any], known: str | None) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._run = self.wandb.init(
            project=self.project, name=self.run, id=known, resume="allow" if known else None, dir=str(self.folder),
            config=dict(settings),
        )  # fmt: skip
        # Trials end in any order, and each tuning counts from 1: wandb's own step never goes back.
        self._run.define_metric("*", step_metric="step")
        return str(self._run.id)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log({**figures, "step": step})

    def close(self, result: SearchResult, *, complete: bool) -> None:
        best = result.best()
        if best is not None:
            self._run.summary.update(
                {"best": {"loss": best.loss, "memory_bytes": best.memory_bytes},
                 "plan": plan_to_dict(result.space, best.plan)}
            )  # fmt: skip
        self._run.finish(exit_code=0 if complete else 1)
