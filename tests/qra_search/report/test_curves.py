"""Loss curves are read as far as they are whole, smoothed, and drawn in the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import make_run

from qra_search.report.curves import read_curves, smoothed
from qra_search.report.data import RunData
from qra_search.report.html.page import page


def write_curve(folder: Path, name: str, steps: int, *, end: str = "") -> None:
    rows = [{"step": s, "loss": 2.0 + 1 / s, **({"validation_loss": 2.5} if s % 4 == 0 else {})}
            for s in range(1, steps + 1)]  # fmt: skip
    (folder / "tuning" / name).mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in rows) + end
    (folder / "tuning" / name / "curve.jsonl").write_text(text)


def test_a_curve_is_read_as_far_as_it_is_whole_and_finite(tmp_path: Path) -> None:
    write_curve(tmp_path, "plan-a", 9, end='{"step": 10, "loss": NaN, "validation_loss": NaN}\n{"step": 11, "lo')
    write_curve(tmp_path, "empty", 0)
    (curve,) = read_curves(tmp_path)
    assert curve.name == "plan-a" and curve.validation == ((4, 2.5), (8, 2.5))
    assert curve.loss == tuple((s, 2.0 + 1 / s) for s in range(1, 10))
    assert read_curves(tmp_path / "nothing") == ()


def test_many_steps_are_means_of_a_few_and_the_mean_stays() -> None:
    points = [(float(i), float(i % 7)) for i in range(700)]
    few = smoothed(points, 70)
    assert len(few) == 70 and few[0] == (pytest.approx(4.5), pytest.approx(sum(i % 7 for i in range(10)) / 10))
    assert sum(y for _, y in few) / 70 == pytest.approx(sum(y for _, y in points) / 700)


def test_the_report_shows_the_tunings_of_a_run_that_has_some(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert "How the tuning went" not in page([RunData.read(run)])
    write_curve(run.path, "uniform-4-rank-8-seed-0", 20)
    shown = page([RunData.read(run)])
    assert "How the tuning went" in shown and "uniform-4-rank-8-seed-0" in shown
