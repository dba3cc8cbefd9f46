"""What was tuned in a folder: an adapter on its base, its plan, the comparison on test data; and what was set aside."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qra_search.errors import BadInput
from qra_search.files import DIGEST_SUFFIX, read_json
from qra_search.runs.comparison import FOUND, TEST_FORMAT, read_test
from qra_search.space.serialization import plan_from_dict
from qra_search.space.space import Plan, SearchSpace

EARLIER = "earlier-"
"""Begins the name of a folder with what was tuned before, and was set aside."""


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

        `plan.json` stays as well.
        """
        folder = self.path / f"{EARLIER}{len(self.earlier()) + 1}"
        folder.mkdir()
        base = self.path / "quantized.safetensors"
        for item in (self.adapter, base, Path(f"{base}{DIGEST_SUFFIX}"), self.test_file, self.path / "exports"):
            if item.exists():
                item.rename(folder / item.name)
        if self.plan_file.is_file():
            shutil.copy2(self.plan_file, folder)
        return folder

    def earlier(self) -> list[TunedFolder]:
        """What was set aside, the last first."""
        numbers = itertools.count(1)
        folders = (TunedFolder(self.path / f"{EARLIER}{number}") for number in numbers)
        return list(itertools.takewhile(lambda folder: folder.path.is_dir(), folders))[::-1]

    def test(self) -> dict[str, Any] | None:
        """The comparison on test data; None if there is none."""
        data: dict[str, Any] | None = read_json(self.test_file)
        return data
