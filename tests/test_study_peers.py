"""What the study compares with other ways and other tools: pairs, bytes, and a merged model that is the tuned one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qra_search.space.groups import Group, Linear
from qra_search.space.space import SearchSpace

STUDY = Path(__file__).parents[1] / "benchmarks" / "study"


@pytest.fixture
def study(monkeypatch):
    """Imports a module of `benchmarks/study`, which are scripts beside each other, on their own."""
    monkeypatch.syspath_prepend(str(STUDY))
    before = set(sys.modules)
    yield __import__
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == STUDY:
            del sys.modules[name]


def space():
    linears = [Linear(name=name, out_features=64, in_features=64) for name in ("q", "k")]
    return SearchSpace(groups=[Group(name=f"group {m.name}", linears=(m,)) for m in linears], ranks=(2,))


def tuning(loss, **key):
    """A tuning whose two rows of ten tokens have one loss."""
    return {**key, "test_loss": loss, "memory_bytes": 3 << 20, "row_losses": [10 * loss] * 2, "row_tokens": [10, 10]}


def test_a_tools_choice_is_read_by_the_names_of_linears(study):
    plan = study("peers").plan_of(space(), {"k": 4, "q": 2})
    assert plan.bits == (2, 4)
    assert plan.ranks == (2, 2)


def test_a_choice_for_another_model_is_refused(study):
    with pytest.raises(ValueError, match="2 linears"):
        study("peers").plan_of(space(), {"q": 2, "v": 2})


def test_ours_takes_no_more_bytes_than_the_smallest_choice_of_the_same_bits(study):
    choices = [{"target": 2.6, "way": "a"}, {"target": 2.6, "way": "b"}, {"target": None, "way": "c"},
               {"target": None, "way": "d"}, {"target": 3.25, "way": "a"}]  # fmt: skip
    assert study("peers").same_bytes(choices, [12, 11, 5, 6, 20]) == [11, 11, 5, 6, 20]


def test_each_choice_stands_beside_ours_within_its_own_bytes(study, capsys):
    peers = study("peers")
    words = {"linears": {"3": 2}, "mean_bits": 3.0, "seed": 0}
    peers.print_table([
        tuning(1.0, plan="a", within_bytes=10, **words),
        tuning(0.9, plan=peers.OURS, within_bytes=10, **words),
        tuning(1.0, plan="b", within_bytes=20, **words),
        tuning(1.1, plan=peers.OURS, within_bytes=20, **words),
        tuning(1.0, plan="without ours yet", within_bytes=30, **words),
    ])  # fmt: skip
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1].strip() for row in rows] == ["a", "b"]
    assert [row[9].split()[0] for row in rows] == ["-10.0%", "+10.0%"]


def test_ways_are_compared_with_the_kept_adapter_of_their_own_width(study, capsys):
    merged = study("merged")
    merged.print_table([
        tuning(2.0, way=merged.KEPT, bits=2, seed=0),
        tuning(2.2, way=merged.MERGED, bits=2, seed=0),
        tuning(1.0, way=merged.KEPT, bits=3, seed=0),
        tuning(0.9, way=merged.MERGED, bits=3, seed=0),
    ])  # fmt: skip
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[6].split()[0] for row in rows] == ["–", "+10.0%", "–", "-10.0%"]


def test_a_merged_model_has_the_loss_of_the_tuned_one_and_no_adapters_bytes(study, monkeypatch, tmp_path):
    protocol, merged = study("protocol"), study("merged")
    monkeypatch.setattr(protocol, "MODEL", "tiny")
    for section, short in (
        ("TRAINING", {"learning_rate": 0.02}),
        ("EVALUATION", {"steps": 1, "validation_rows": 2}),
        ("FINETUNE", {"steps": 3, "test_rows": 4}),
    ):
        monkeypatch.setattr(protocol, section, getattr(protocol, section).model_copy(update=short))
    for split, count in (("train", 40), ("test", 4)):
        rows = [{"question": f"What is {i} and {split} {i}?", "answer": f"It is\n#### {2 * i}"} for i in range(count)]
        (tmp_path / f"gsm8k_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = merged.Runs(str(tmp_path), tmp_path / "work", str(tmp_path / "bank"), 0)
    runs.base.tuner.switcher.prepare()
    runs.base.workbench.apply(runs.plan(16, 0), 0)
    before = merged.measured(runs.base, runs.plan(16, 0))
    tuned = runs.tune(16)
    after = runs.quantized_merged(16, 16)
    assert abs(tuned["test_loss"] - before["test_loss"]) > 0.01
    assert after["test_loss"] == pytest.approx(tuned["test_loss"], abs=0.002)
    assert after["memory_bytes"] < tuned["memory_bytes"]
    again = merged.Runs(str(tmp_path), tmp_path / "work", str(tmp_path / "bank"), 0)
    assert again.quantized_below(16)["row_losses"] == tuned["row_losses"]


def test_a_plan_that_a_search_handed_over_twice_is_known_by_its_choices(study):
    budgets = study("budgets")
    lines = [tuning(1.2, plan="nsga2 62 MiB", seed=0, choices=7, own_rows=True), tuning(1.1, plan="16-bit r32", seed=0)]
    assert budgets.like({"choices": 7, "seed": 0, "init": "default"}, lines) is lines[0]
    assert budgets.like({"plan": "16-bit r32", "seed": 0, "own_rows": False, "choices": None}, lines) is lines[1]
    assert budgets.like({"choices": 7, "seed": 1}, lines) is None


def test_what_searches_found_stands_beside_the_sensitivities_of_the_same_budget_and_seeds(study):
    alike = {"own_rows": True, "scales": True, "embeddings": [4]}
    table = study("budgets_table").searched_table([
        tuning(1.0, plan="sensitivities 62 MiB", seed=0, **alike),
        tuning(1.0, plan="sensitivities 62 MiB", seed=1, **alike),
        tuning(9.0, plan="sensitivities 62 MiB", seed=0, **alike, sensitivities=6),  # a later one of the same seed
        tuning(1.1, plan="nsga2 62 MiB", seed=1, **alike, choices=7),
        tuning(1.1, plan="nsga2 72 MiB", seed=1, **alike, choices=7),  # nothing stands beside it
        tuning(1.1, plan="nsga2 62 MiB", seed=0, own_rows=True, embeddings=[4]),  # scales were not trained
    ])  # fmt: skip
    assert table[2:] == [
        "| 62 MiB | sensitivities | 3.0 | 4 | 2 | 1.0000 | – |",
        "| 62 MiB | nsga2 | 3.0 | 4 | 1 | 1.1000 | +10.0% [+10.0%, +10.0%] |",
    ]
