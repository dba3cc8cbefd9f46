"""`qra finetune` where something fails, is interrupted, or cannot be used: a line says so, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_runner import Qra, read_records

from qra_search.app.folder import RunFolder

pytestmark = pytest.mark.usefixtures("tuner")


def test_a_baseline_out_of_memory_leaves_no_record_and_one_that_diverged_does(
    qra: Qra, searched: Path, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    tuner["failing"] = True
    done = qra(*mixed)
    assert done.status == 0 and "has no record: out of memory: 3 GiB more are needed" in " ".join(
        done.err.split()
    )
    assert "no uniform plan was tuned alike" in done.out and len(read_records(searched)) == 1
    tuner |= {"failing": None, "diverging": True}
    assert "no uniform plan was tuned alike" in qra(*mixed).out
    assert [record.failed for record in read_records(searched)] == ["", "diverged: training loss is nan"]
    count = len(tuner["tuned"])
    assert "diverged" in qra(*mixed).out and len(tuner["tuned"]) == count
    assert "diverged" in RunFolder(searched).report_file.read_text()


def test_the_plan_failing_is_an_error_and_tried_again_unless_it_diverged(
    qra: Qra, searched: Path, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    tuner["failing"] = False
    done = qra(*mixed)
    assert done.status == 1 and not read_records(searched)
    assert "the plan could not be tuned with seed 0: out of memory: 3 GiB more are needed" in done.err
    tuner |= {"failing": None, "diverging": True}
    for _ in range(2):
        done = qra("finetune", searched, "--plan", "uniform2r4")
        assert done.status == 1 and "diverged: training loss is nan" in done.err
        assert qra("show", searched).status == qra("report", searched).status == 0
    assert len(tuner["tuned"]) == 2


def test_ctrl_c_keeps_what_was_tuned_and_says_so(
    qra: Qra, searched: Path, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    tuner["stops_after"] = 1
    stopped = qra(*mixed)
    assert stopped.status == 130 and "Give the same command again to continue" in stopped.err
    assert read_records(searched)[0].id in RunFolder(searched).report_file.read_text()
    tuner["stops_after"] = 9
    again = qra(*mixed)
    assert again.status == 0 and "1 of 2 tunings are finished, 1 left" in again.err
    assert len(tuner["tuned"]) == 2


def test_what_cannot_be_set_to_tune_a_plan_is_refused_before_anything_is_built(
    qra: Qra, tuner: dict[str, Any], mixed: tuple[str | Path, ...]
) -> None:
    built = tuner["built"]
    for options, why in (
        (("--steps", 3, "--epochs", 1), "--steps and --epochs both say how long to tune"),
        (
            ("--set", "space.bits=[2]"),
            "space.bits is 'auto' in this run and cannot be changed",
        ),
        (
            ("--set", "training.warmup=1"),
            "training.warmup is 1",
        ),
        (("--against", "rivals"), "'rivals' is not one of 'best', 'all', 'shuffled', 'none'"),
    ):
        done = qra(*mixed, *options)
        assert done.status == 2 and why in done.err and tuner["built"] == built


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plan.json", "{"),
        ("plan.json", "[]"),
        ("record.json", "{"),
        ("record.json", "[]"),
        ("record.json", "{}"),
    ],
)
def test_a_damaged_file_is_bad_input_in_a_line_that_names_it(
    qra: Qra, searched: Path, mixed: tuple[str | Path, ...], name: str, content: str
) -> None:
    assert qra(*mixed).status == 0
    (file,) = [searched / name] if name == "plan.json" else [next(searched.glob("tunings/*/record.json"))]
    file.write_text(content)
    for command in ("show", "report"):
        done = qra(command, searched)
        assert done.status == 2 and name in done.err and done.err.count("\n") == 1, command
