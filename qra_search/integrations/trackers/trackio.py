"""Trackio: one run of a local project, which `trackio show` opens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_search.integrations.trackers.base import PROJECT, Tracker
from qra_search.report.finding import finding
from qra_search.study.result import SearchResult


class TrackioTracker(Tracker):
    """`where` is a project, made if it does not exist; it lies where trackio keeps its projects (`TRACKIO_DIR`)."""

    name = "trackio"
    extra = "trackio"
    package = "trackio"

    def __init__(self, folder: Path, where: str | None):
        import trackio

        super().__init__(folder, where)
        self.trackio: Any = trackio
        self.project = where or PROJECT
        self._run: Any = None

    def open(self, settings: Mapping[str, Any], known: str | None) -> str:
        self._run = self.trackio.init(
            project=self.project, name=known or self.run, resume="allow" if known else "never", embed=False,
            config={name: value if isinstance(value, (int, float, str)) else str(value)
                    for name, value in settings.items()},
        )  # fmt: skip
        return str(self._run.name)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self, result: SearchResult, *, complete: bool) -> None:
        found = finding(result)
        if found is not None:
            self._run.log({"result/loss": found.loss, "result/memory_mib": found.memory_bytes / 2**20})
        self._run.finish()
