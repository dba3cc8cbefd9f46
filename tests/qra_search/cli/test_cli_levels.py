"""A run with several ways to store a width: shown, edited, compared and reported by the names of its levels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runner import Qra
from report_runs import make_run

from qra_search.cli.look import _changed
from qra_search.testing.scenarios import TWO_WAYS, toy_space


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    space = toy_space(bits=TWO_WAYS, ranks=(0, 4, 8))
    return make_run(tmp_path_factory.mktemp("levels") / "a", space=space, memory=("uniform nf4 r4",)).path


def test_a_plan_is_edited_by_name(qra: Qra, run: Path, tmp_path: Path) -> None:
    edited = tmp_path / "e.json"
    assert qra("plans", "edit", run, "--set", "*=nf4:8", "--set", "layers.0.*=hqq-4:", "--out", edited).status == 0
    groups = json.loads(edited.read_text())["groups"]
    assert [(g["bits"], g["width"], g["backend"], g["rank"]) for g in groups[:2]] == [
        ("hqq-4", 4, "hqq", 8), ("nf4", 4, "bitsandbytes", 8),
    ]  # fmt: skip
    other = tmp_path / "o.json"
    assert qra("plans", "edit", run, "--set", "*=2:4", "--out", other).status == 0
    assert "layers.0.layer: hqq-4, rank 8 -> 2 bits, rank 4" in qra("plans", "diff", edited, other).out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("*=4:4", "4 bits are stored in several ways: name one of nf4, hqq-4"),
        ("*=nf5:4", "unknown storage level 'nf5': did you mean nf4? known are 2, 8, hqq-4, nf4"),
        ("*=n f:4", "'n f' names no level"),
    ],
)
def test_a_level_that_is_not_there_is_one_line(qra: Qra, run: Path, tmp_path: Path, change: str, message: str) -> None:
    done = qra("plans", "edit", run, "--set", change, "--out", tmp_path / "x.json")
    assert done.status == 2 and message in done.err and done.err.count("\n") == 1


def test_show_and_report_name_the_levels(qra: Qra, run: Path) -> None:
    shown = qra("show", run).out
    assert "2 bits; nf4 (4 bits, bitsandbytes); hqq-4 (4 bits, hqq); 8 bits" in shown
    assert qra("report", run).status == 0
    page = (run / "report.html").read_text()
    assert "hqq-4" in page and "bitsandbytes" in page


def test_a_pattern_for_linears_leaves_the_embeddings_alone() -> None:
    space = toy_space(2, table=True)
    plan = space.uniform(4, 8)
    assert plan is not None
    everywhere = _changed(space, plan, "*=2:4")
    assert (everywhere.bits, everywhere.ranks) == ((2, 2, 4), (4, 4, 0))
    assert _changed(space, plan, "embed=8:").bits == (4, 4, 8)
