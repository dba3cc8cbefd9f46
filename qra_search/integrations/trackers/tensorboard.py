"""TensorBoard: event files in a folder, with settings and the plan as texts and figures as scalars."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_search.integrations.trackers.base import Tracker
from qra_search.report.finding import said
from qra_search.study.result import SearchResult

FOLDER = "tensorboard"


class TensorBoardTracker(Tracker):
    """`where` is a common folder of several runs' event files; None: the run's own folder has them."""

    name = "tensorboard"
    extra = "tensorboard"
    package = "tensorboard"

    def __init__(self, folder: Path, where: str | None):
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(folder, where)
        self.folder = folder / FOLDER if where is None else Path(where) / self.run
        self.folder.mkdir(parents=True, exist_ok=True)  # fails here, before a search has cost anything
        self._make_writer: Any = SummaryWriter
        self.writer: Any = None

    def open(self, settings: Mapping[str, Any], known: str | None) -> str:
        self.writer = self._make_writer(str(self.folder))
        if known is None:
            rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
            self.writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", 0)
        # Event files know no runs: what is written into the same folder is the same run.
        return known or str(self.folder)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, result: SearchResult, *, complete: bool) -> None:
        step = len(result.trials)
        self.writer.add_text("result", said(result), step)
        best = result.best()
        if best is not None:
            rows = zip(result.space.names, best.plan.bits, best.plan.ranks, strict=True)
            table = "\n".join(f"| {group} | {bits} | {rank} |" for group, bits, rank in rows)
            self.writer.add_text("plan", f"| group | bits | rank |\n|---|---|---|\n{table}", step)
        self.writer.close()
