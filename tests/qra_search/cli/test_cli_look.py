"""Commands that look at runs: show, compare, runs, report, plan, profile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runner import LANDSCAPE, Qra

from qra_search.log.trial_log import TrialLog
from qra_search.runs.folder import RunFolder
from qra_search.space.serialization import plan_from_dict


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one space: `a` by the additive strategy, `b` by random; modules of three layers."""
    from qra_search.cli.errors import run_safely

    path = tmp_path_factory.mktemp("look")
    for name, strategy, seed in (("a", "additive", "0"), ("b", "random", "1")):
        command = ["search", "--evaluator", "landscape", "--set", "options.layers=3", "--strategy", strategy]
        command += ["-n", "14", "--seed", seed, "--memory", "uniform3r8", "--memory", "uniform4r8", "--json"]
        assert run_safely([*command, "--out", str(path / name)]) == 0
    return path


def test_show_prints_bits_and_rank_of_every_group_by_kind_and_layer(qra: Qra, runs: Path) -> None:
    run = RunFolder(runs / "a")
    space, plan = run.result().space, run.plan()
    lines = qra("show", run.path).out.splitlines()
    bits, ranks = lines.index("bits"), lines.index("rank")
    for start, values in ((bits, plan.bits), (ranks, plan.ranks)):
        shown = {line.split()[0]: line.split()[1:] for line in lines[start + 2 : start + 9]}
        expected: dict[str, list[str]] = {}
        for group, value in zip(space.groups, values, strict=True):
            expected.setdefault(group.kind, []).append(str(value))
        assert shown == expected


def test_show_of_a_smaller_budget_is_the_best_plan_within_it(qra: Qra, runs: Path) -> None:
    run = RunFolder(runs / "a")
    result = run.result()
    small = result.memory_budgets[0]
    data = qra("show", run.path, "--memory", "uniform3r8", "--json").json
    best = result.best(small)
    assert best is not None and plan_from_dict(result.space, data) == best.plan
    assert data["memory_bytes"] <= small


def test_compare_gives_findings_and_the_settings_that_differ(qra: Qra, runs: Path) -> None:
    data = qra("compare", runs / "a", runs / "b", "--json").json
    assert data["differences"] == {"search.strategy": ["additive", "random"], "search.seed": [0, 1]}
    for row, name in zip(data["runs"], "ab", strict=True):
        best = RunFolder(runs / name).result().best()
        assert best is not None and row["loss"] == best.loss
    text = qra("compare", runs / "a", runs / "b").out
    assert "search.strategy: additive | random" in text
    low = min(data["runs"], key=lambda r: r["loss"])
    assert f"Lowest loss within the same budget: {low['run']}" in text.replace("\n", "")


def test_runs_lists_every_run_and_names_one_that_cannot_be_read(qra: Qra, runs: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(runs, tmp_path / "copy")
    (tmp_path / "copy" / "bad").mkdir()
    (tmp_path / "copy" / "bad" / "trials.jsonl").write_bytes(b"junk" * 100)
    rows = qra("runs", tmp_path / "copy", "--json").json
    assert [Path(r["run"]).name for r in rows] == ["a", "b", "bad"]
    assert [r.get("complete") for r in rows] == [True, True, None]
    text = qra("runs", tmp_path / "copy")
    assert text.status == 0
    assert "not a readable trial log" in " ".join(text.out.split())


def test_runs_of_an_empty_folder_says_so(qra: Qra, tmp_path: Path) -> None:
    assert "No runs in" in qra("runs", tmp_path).out
    assert qra("runs", tmp_path, "--json").json == []


def test_report_writes_one_file_for_one_run_and_for_several(qra: Qra, runs: Path, tmp_path: Path) -> None:
    (runs / "a" / "report.html").unlink()
    assert qra("report", runs / "a").status == 0
    assert (runs / "a" / "report.html").read_text().startswith("<!doctype html>")
    out = tmp_path / "deep" / "both.html"
    assert qra("report", runs / "a", runs / "b", "--out", out, "--json").json == {
        "report": str(out),
        "figures": [],
    }
    assert "2 runs compared" in out.read_text()


def test_report_writes_figures_beside_it(qra: Qra, runs: Path, tmp_path: Path) -> None:
    made = qra("report", runs / "a", "--figures", "--json").json
    assert str(runs / "a" / "figures" / "front.svg") in made["figures"]
    both = qra("report", runs / "a", runs / "b", "--figures", "--out", tmp_path / "both.html", "--json").json
    assert str(tmp_path / "both-figures" / "fronts.svg") in both["figures"]
    assert all(Path(file).stat().st_size > 500 for file in made["figures"] + both["figures"])


def test_a_run_that_is_going_on_can_be_looked_at(qra: Qra, runs: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(runs / "a", tmp_path / "a")
    with TrialLog(tmp_path / "a" / "trials.jsonl") as log:
        log.propose(log.trials[0].proposal.__class__(log.trials[0].plan, seed=77, origin="test"))
        for command in ("show", "report"):
            assert qra(command, tmp_path / "a").status == 0
        rows = qra("runs", tmp_path, "--json").json
    assert len(rows) == 1


def test_plan_diff_names_every_group_that_differs(qra: Qra, runs: Path, tmp_path: Path) -> None:
    edited = tmp_path / "e.json"
    assert qra("plans", "edit", runs / "a", "--set", "*.v_proj=8:4", "--out", edited).status == 0
    data = qra("plans", "diff", runs / "a", edited, "--json").json
    assert {d["group"].rpartition(".")[2] for d in data["differences"]} == {"v_proj"}
    assert all(d["second"] == [8, 4] for d in data["differences"])
    data = qra("plans", "edit", runs / "a", "--set", "*=4:", "--out", tmp_path / "four.json", "--json").json
    assert data["memory_bytes"] == json.loads((tmp_path / "four.json").read_text())["memory_bytes"]
    assert "0 of 21 groups differ" in qra("plans", "diff", edited, edited).out


def test_plan_check_counts_the_bytes_that_the_space_counts(qra: Qra, runs: Path, tmp_path: Path) -> None:
    run = RunFolder(runs / "a")
    space = run.result().space
    assert qra("plans", "check", run.path, "--json").json["memory_bytes"] == space.memory_bytes(run.plan())
    out = tmp_path / "e.json"
    qra("plans", "edit", run.path, "--set", "*=2:", "--set", "*=:4", "--out", out)
    smallest = qra("plans", "check", out, "--run", run.path, "--memory", "uniform3r8", "--json").json
    assert smallest["memory_bytes"] == space.memory.minimum


def test_profile_shows_the_most_sensitive_groups_first(qra: Qra, tmp_path: Path) -> None:
    out = tmp_path / "p" / "sensitivities.json"
    shown = qra("profile", *LANDSCAPE, "--out", out)
    assert shown.status == 0
    sensitivities = json.loads(out.read_text())
    order = sorted(range(4), key=lambda g: -sensitivities["bits_damage"][g][0])
    lines = shown.out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("most sensitive"))
    assert [line.split()[0] for line in lines[first + 1 : first + 5]] == [sensitivities["groups"][g] for g in order]
    assert qra("profile", *LANDSCAPE, "--json").json["groups"] == sensitivities["groups"]
