"""Runs the command line in this process, as a user would, and makes small runs for the tests of commands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qra_search import Plan
from qra_search.app.cli.app import run_safely
from qra_search.app.folder import RunFolder
from qra_search.schemas import TuningRecord
from qra_search.space.serialization import plan_to_dict

LANDSCAPE = ("--evaluator", "landscape", "--granularity", "layer", "--set", "options.layers=4")
SEARCHED = ("search", *LANDSCAPE, "--strategy", "random", "-n", 12, "--memory", "uniform3r8")
"""What `Qra.search` does, if nothing else is said."""
MIXED = Plan((2, 3, 3, 3), (8,) * 4)
"""A plan of its space."""


@dataclass(frozen=True)
class Outcome:
    """What came of a command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Qra:
    """The command line."""

    def __init__(self, capsys: pytest.CaptureFixture[str]):
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Outcome:
        self._capsys.readouterr()
        status = run_safely([str(a) for a in arguments])
        captured = self._capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    def search(self, out: Path, *more: object, evaluations: int = 12, strategy: str = "random") -> Outcome:
        """A search of a small landscape."""
        words = ("search", *LANDSCAPE, "--strategy", strategy, "-n", evaluations, "--memory", "uniform3r8")
        return self(*words, "--out", out, *more)


def write_plan(run: Path, plan: Plan, name: str = "mixed.json") -> Path:
    """The file of a plan, beside a run of the same space."""
    file = run.parent / name
    file.write_text(json.dumps(plan_to_dict(RunFolder(run).read().result.space, plan)))
    return file


def read_records(run: Path) -> list[TuningRecord]:
    return RunFolder(run).records()
