"""What all benchmarks share: lines of results, the commit, the processor's name, and a process's own memory."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_lines(path: Path, *rows: dict[str, Any]) -> None:
    """Add lines to a file of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def find_commit() -> str:
    """The short hash of the commit that measures; empty outside a checkout."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, cwd=RESULTS.parent, capture_output=True, text=True, check=False).stdout.strip()


def find_cpu_name() -> str:
    """The processor, as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def count_own_bytes() -> int:
    """Bytes of this process's resident pages that belong to no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no RssAnon in the process's status: Linux is needed")


class PeakWatch:
    """The most memory of its own that the process holds while the body runs, and the stage at which it does.

    Attributes:
        peak_bytes: of resident pages that belong to no file.
        peak_stage: as the last call of `progress` before the peak named it.
    """

    def __init__(self, every_seconds: float = 0.002):
        self.every_seconds, self.stage, self.peak_stage = every_seconds, "start", "start"

    def progress(self, stage: str, done: int, total: int) -> None:
        """A callback for an evaluator's progress."""
        self.stage = f"{stage} {done}/{total}"

    def __enter__(self) -> PeakWatch:
        self.peak_bytes, self._over = count_own_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(self.every_seconds):
            if (now := count_own_bytes()) > self.peak_bytes:
                self.peak_bytes, self.peak_stage = now, self.stage

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
