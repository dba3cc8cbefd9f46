"""`qra plan`: a plan in a run's folder without any evaluation, which a search goes on from."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cli_runner import Qra

from qra_search.allocate.solve import solve
from qra_search.app.config import load_config
from qra_search.app.folder import RunFolder
from qra_search.log.journal import TrialLog

MODULES = ("--evaluator", "landscape", "--set", "options.layers=4")


def test_a_plan_evaluates_nothing_and_is_the_exact_optimum_of_the_sensitivities(
    qra: Qra, tmp_path: Path
) -> None:
    done = qra("plan", *MODULES, "--memory", "uniform3r8", "--out", tmp_path / "a", "--json")
    assert done.status == 0, done.err
    run = RunFolder(tmp_path / "a")
    result, (budget,) = run.read().result, run.read().result.memory_budgets
    assert result.trials == () and result.sensitivities is not None
    allocation = solve(result.space, result.sensitivities, budget)
    assert run.read().require_plan() == allocation.plan
    (row,) = done.json["allocations"]
    assert row["memory_bytes"] <= row["budget_bytes"] == budget
    fitting = [p for p in result.space.uniform_plans() if result.space.memory_bytes(p) <= budget]
    assert {json.dumps(u["plan"]) for u in row["uniform"]} == {json.dumps(p.to_dict()) for p in fitting}
    assert all(u["gain"] >= -1e-9 for u in row["uniform"])


def test_the_front_has_plans_of_every_size_and_what_they_lead_uniform_plans_by(
    qra: Qra, tmp_path: Path
) -> None:
    command = ("plan", *MODULES, "--memory", "uniform3r8", "--front")
    found = qra(*command, "--out", tmp_path / "a", "--json").json["predicted_front"]
    result = RunFolder(tmp_path / "a").read().result
    for row in found:
        plan = solve(result.space, result.sensitivities, row["budget_bytes"]).plan
        assert row["plan"] == plan.to_dict() and row["memory_bytes"] <= row["budget_bytes"]
    sizes, losses = [r["memory_bytes"] for r in found], [r["predicted_loss"] for r in found]
    assert sizes == sorted(sizes) and losses == sorted(losses, reverse=True) and len(set(sizes)) > 5
    rows = re.findall(
        r"^[\d.]+ \wiB .* (uniform \d+ bits, rank 2) +(\S+) *$",
        qra(*command, "--out", tmp_path / "b").out,
        re.M,
    )
    assert len(rows) == len(result.space.bits) and all(float(lead) >= 0 for _, lead in rows)


def test_the_screen_names_every_uniform_plan_the_interval_and_the_next_commands(
    qra: Qra, tmp_path: Path
) -> None:
    done = qra("plan", *MODULES, "--memory", "uniform3r8", "--out", tmp_path / "a")
    for text in (
        "uniform 2 bits, rank 4",
        "uniform 3 bits, rank 8",
        "plan: mixed",
        "90% interval",
        f"qra finetune {tmp_path / 'a'}",
        f"qra search {tmp_path / 'a'} --evaluations 24",
        "What a search takes: ",
    ):
        assert text in done.out, text
    assert "Runs in Python, by qra_eval.load" in done.out
    explained = {word for word in ("Change: ", "Chance: ") if word in done.out}
    assert explained == {"Change: "} | (
        {"Chance: "} if "chance" in done.out.lower().replace("chance: ", "") else set()
    )
    shown = qra("show", tmp_path / "a")
    assert shown.status == 0 and "Nothing was tuned yet" in " ".join(shown.out.split())
    assert "\nshuffled " in shown.out and "\nshuffled " in done.out
    assert "Predicted by the sensitivities" in (tmp_path / "a" / "report.html").read_text()


def test_a_search_goes_on_from_a_plan_and_ends_as_one_without_it(qra: Qra, tmp_path: Path) -> None:
    qra("plan", *MODULES, "--memory", "uniform3r8", "--out", tmp_path / "a")
    on = qra("search", tmp_path / "a", "--evaluations", 8)
    assert on.status == 0, on.err
    assert "what it costs: " in on.err
    assert "resumed: the sensitivities are already measured, no plan was evaluated yet" in on.err
    alone = qra("search", *MODULES, "--memory", "uniform3r8", "-n", 8, "--out", tmp_path / "b")
    assert alone.status == 0 and "resumed" not in alone.err
    logs = []
    for name in "ab":
        with TrialLog(tmp_path / name / "trials.jsonl") as log:
            logs.append([(t.proposal, t.evaluation and t.evaluation.loss) for t in log])
    assert logs[0] == logs[1] and logs[0]
    assert load_config(tmp_path / "a" / "config.yaml").search.evaluations == 8


def test_a_plan_made_again_measures_nothing_again_and_keeps_the_length_of_the_search(
    qra: Qra, tmp_path: Path
) -> None:
    command = ("plan", *MODULES, "--memory", "uniform3r8", "--out", tmp_path / "a")
    qra(*command)
    known = (tmp_path / "a" / "sensitivities.json").read_bytes()
    assert not (tmp_path / "a" / "trials.jsonl").exists()
    again = qra(*command)
    assert again.status == 0 and again.err.count("resumed: ") == 1
    assert (tmp_path / "a" / "sensitivities.json").read_bytes() == known
    assert qra("search", tmp_path / "a", "--evaluations", 9).status == 0
    for more, evaluations in (((), 9), (("--set", "search.evaluations=11"), 11)):
        assert qra(*command, *more).status == 0
        assert RunFolder(tmp_path / "a").config().search.evaluations == evaluations


def test_a_dry_run_shows_an_example_as_it_is_tuned_on_and_makes_nothing(qra: Qra, tmp_path: Path) -> None:
    made = tmp_path / "a"
    shown = qra(
        *["plan", "--model", "tiny", "--task", "arithmetic", "--memory", "75%", "--dry-run", "--out"], made
    )
    assert shown.status == 0 and not made.exists(), shown.err
    given, learnt = (
        line.split(maxsplit=1) for line in shown.out.splitlines() if line[:6] in ("given ", "learnt")
    )
    assert given[0] == "given" and given[1].endswith("Answer:'")
    assert learnt[0] == "learnt" and learnt[1].endswith("<|end|>'")
    for words in ("smallest plan", "will run", "Nothing was run", "ranks 2, 4, 8, 16, 32"):
        assert words in shown.out
    for engine in ("llama.cpp", "transformers", "vllm"):
        text = rf"in {engine} +at least [\d.]+ KiB, which (is more than|fits) the budget, if planned"
        assert re.search(text, shown.out), engine
    assert re.search(
        r"each tuning +about [\d.]+ \w+, .*Trials of learning rates take at most as long", shown.out
    )
    assert "an evaluation" not in shown.out and "()" not in shown.out, "a plan's forecast is its own"


def test_a_budget_may_name_any_width_that_its_run_has(qra: Qra, tmp_path: Path) -> None:
    """The message lists the widths that there are."""
    words = ("plan", "--model", "tiny", "--task", "arithmetic", "--dry-run", "--out", tmp_path / "a")
    facts = qra(*words, "--memory", "uniform1r8", "--json").json
    assert 1 in facts["levels"] and facts["smallest_bytes"] <= facts["budgets"][0] < facts["largest_bytes"]
    assert "trellis-1.5" in qra(*words, "--memory", "uniform1.5r8", "--json").json["levels"]
    refused = qra(*words, "--memory", "uniform7r8")
    assert refused.status == 2 and "its bits are 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, its ranks" in refused.err
