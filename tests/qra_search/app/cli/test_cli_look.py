"""Commands that look at runs and plans: show and report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runner import Qra
from report_runs import make_run

from qra_search.app.folder import RunFolder
from qra_search.log.journal import TrialLog
from qra_search.schemas import Plan
from qra_search.space.serialization import plan_to_dict
from qra_search.testing.scenarios import DOUBLY_STORED_BITS, make_toy_space


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one space: `a` by the additive strategy, `b` by random; modules of three layers."""
    from qra_search.app.cli.app import run_safely

    path = tmp_path_factory.mktemp("look")
    for name, strategy, seed in (("a", "additive", "0"), ("b", "random", "1")):
        command = ["search", "--evaluator", "landscape", "--set", "options.layers=3", "--strategy", strategy]
        command += ["-n", "14", "--seed", seed, "--memory", "uniform3r8", "--memory", "uniform4r8", "--json"]
        assert run_safely([*command, "--out", str(path / name)]) == 0
    return path


def test_show_prints_bits_and_rank_of_every_group_by_layer_and_kind(qra: Qra, runs: Path) -> None:
    run = RunFolder(runs / "a")
    space, plan = run.read().result.space, run.read().require_plan()
    lines = qra("show", run.path).out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("layer"))
    kinds = lines[start].split()[1:]
    for layer in range(3):
        bits, ranks = lines[start + 1 + layer].split()[1::2], lines[start + 1 + layer].split()[2::2]
        for kind, width, rank in zip(kinds, bits, ranks, strict=True):
            at = next(i for i, g in enumerate(space.groups) if (g.kind, g.depth) == (kind, layer))
            assert (width, rank) == (str(plan.bits[at]), f"r{plan.ranks[at]}")


def test_report_writes_one_file_where_it_is_wanted(qra: Qra, runs: Path, tmp_path: Path) -> None:
    (runs / "a" / "report.html").unlink()
    assert qra("report", runs / "a").status == 0
    assert (runs / "a" / "report.html").read_text().startswith("<!doctype html>")
    out = tmp_path / "deep" / "page.html"
    assert qra("report", runs / "a", "--out", out, "--json").json == {"report": str(out)} and out.is_file()
    assert qra("report", runs / "a", runs / "b").status == 2


def test_a_run_that_is_going_on_can_be_looked_at(qra: Qra, runs: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(runs / "a", tmp_path / "a")
    with TrialLog(tmp_path / "a" / "trials.jsonl") as log:
        log.propose(log.trials[0].proposal.__class__(log.trials[0].plan, seed=77, origin="test"))
        for command in ("show", "report"):
            assert qra(command, tmp_path / "a").status == 0


def test_two_runs_or_a_run_and_a_plan_are_shown_side_by_side(qra: Qra, runs: Path, tmp_path: Path) -> None:
    spaces, plans = (
        [getattr(RunFolder(runs / name).read(), of) for name in "ab"] for of in ("result", "plan")
    )
    names, one, two = spaces[0].space.names, *plans
    expected = {
        name: [[p.bits[i], p.ranks[i]] for p in (one, two)]
        for i, name in enumerate(names)
        if (one.bits[i], one.ranks[i]) != (two.bits[i], two.ranks[i])
    }
    data = qra("show", runs / "a", runs / "b", "--json").json
    assert {row["group"]: [row["first"], row["second"]] for row in data} == expected and expected
    shown = qra("show", runs / "a", runs / "b").out
    assert shown.splitlines()[1].startswith(f"{runs / 'b'}: Validation loss ")
    assert all(name in shown for name in expected) and f"{len(expected)} of 21 groups differ." in shown
    assert "0 of 21 groups differ." in qra("show", runs / "a", runs / "a" / "plan.json").out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    space = make_toy_space(bits=DOUBLY_STORED_BITS, ranks=(0, 4, 8))
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
