"""A run with several ways to store a width: shown, edited, compared and reported by the names of its levels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runner import Qra
from report_runs import make_run

from qra_search.app.folder import RunFolder
from qra_search.schemas import Plan
from qra_search.space.serialization import plan_to_dict
from qra_search.testing.scenarios import TWO_WAYS, make_toy_space


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    space = make_toy_space(bits=TWO_WAYS, ranks=(0, 4, 8))
    return make_run(tmp_path_factory.mktemp("levels") / "a", space=space, memory=("uniform nf4 r4",)).path


def test_a_plan_file_is_shown_by_the_names_of_its_levels(qra: Qra, run: Path, tmp_path: Path) -> None:
    space, plan = RunFolder(run).read().result.space, Plan(("hqq-4", "nf4", 2, 2, 2), (8,) * 5)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan_to_dict(space, plan)))
    assert "hqq-4, rank 8" in qra("show", run, file).out


def test_show_and_report_name_the_levels(qra: Qra, run: Path) -> None:
    shown = qra("show", run).out
    assert "2 bits; nf4 (4 bits, bitsandbytes); hqq-4 (4 bits, hqq); 8 bits" in shown
    assert qra("report", run).status == 0
    page = (run / "report.html").read_text()
    assert "hqq-4" in page and "bitsandbytes" in page
