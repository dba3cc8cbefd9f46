"""What was tuned in a folder: an adapter on its base, its plan, the comparison on test data; and what was set aside."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qra_search.errors import BadInput
from qra_search.files import DIGEST_SUFFIX, read_json, write_text
from qra_search.runs.comparison import FOUND, TEST_FORMAT, read_test
from qra_search.space.serialization import plan_from_dict
from qra_search.space.space import Plan, SearchSpace

EARLIER = "earlier-"
"""Begins the name of a folder with what was tuned before, and was set aside."""

UNFINISHED = ".earlier.partial"
"""What is being set aside: a kill may leave it."""
CHECKPOINTS = "checkpoint-*.safetensors"
"""In the folder of a tuning, one for all that follows from the same settings."""
CURVE_FILE = "curve.jsonl"
"""In the same folder: a line for each step."""


def forget_checkpoints(kept: Path) -> None:
    """Remove the checkpoints of a tuning whose result is recorded, those of other settings too."""
    for file in kept.glob(CHECKPOINTS):
        file.unlink()


class TuningBusy(BadInput):
    """Another process tunes in the folder."""


class TunedFolder:
    """`adapter/`, `plan.json` and `test.json` of one plan that was tuned, or is to be."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.plan_file = self.path / "plan.json"
        self.test_file = self.path / "test.json"
        self.adapter = self.path / "adapter"

    def tuned(self, space: SearchSpace) -> Plan | None:
        """The plan that the adapter here was tuned for: `plan.json`, if the comparison that followed was of the same;
        None if these differ, or if it cannot be read."""
        try:
            plan = plan_from_dict(space, read_json(self.plan_file))
        except ValueError:
            return None
        test = self.test() or {}
        compared = [t.plan for t in read_test(test) if t.role == FOUND] if test.get("format") == TEST_FORMAT else []
        return None if compared and compared[0] != plan else plan

    @property
    def has_tuned(self) -> bool:
        """Whether a plan was tuned here to the end: its adapter, and its entry in the comparison."""
        test = self.test() or {}
        return self.adapter.is_dir() and any(entry["role"] == FOUND for entry in test.get("tuned", []))

    @contextmanager
    def tuning_alone(self) -> Iterator[None]:
        """While the context lasts, no other process tunes here.

        Raises:
            TuningBusy: one does.
        """
        from filelock import FileLock, Timeout  # as in the trial log

        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.test_file}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            reason = f"another process tunes in {self.path}: wait until it has ended, or stop it first"
            raise TuningBusy(reason) from None
        try:
            yield
        finally:
            lock.release()

    def set_aside(self) -> Path:
        """Move what was tuned, and exports of it, into `earlier-1`, `earlier-2`, ..., and return that folder.

        `plan.json` stays as well. What a kill broke off is gone on with.
        """
        unfinished, folder = self.path / UNFINISHED, self.path / f"{EARLIER}{len(self.earlier()) + 1}"
        unfinished.mkdir(exist_ok=True)
        plan = unfinished / self.plan_file.name
        if self.plan_file.is_file() and not plan.is_file():  # since a kill it may have become another's
            write_text(plan, self.plan_file.read_text())
        base = self.path / "quantized.safetensors"
        for item in (self.test_file, self.path / "exports", base, Path(f"{base}{DIGEST_SUFFIX}"), self.adapter):
            if item.exists():
                item.rename(unfinished / item.name)
        unfinished.rename(folder)
        return folder

    @property
    def half_aside(self) -> bool:
        """Whether a kill broke `set_aside` off."""
        return (self.path / UNFINISHED).is_dir()

    def earlier(self) -> list[TunedFolder]:
        """What was set aside, the last first."""
        numbers = itertools.count(1)
        folders = (TunedFolder(self.path / f"{EARLIER}{number}") for number in numbers)
        return list(itertools.takewhile(lambda folder: folder.path.is_dir(), folders))[::-1]

    def test(self) -> dict[str, Any] | None:
        """The comparison on test data; None if there is none. Raises BadInput if the file holds something else."""
        data: dict[str, Any] | None = read_json(self.test_file)
        if data is not None and not (isinstance(data, dict) and isinstance(data.get("tuned", []), list)):
            raise BadInput(f"{self.test_file} is damaged: move it away, and qra finetune makes it anew")
        return data
