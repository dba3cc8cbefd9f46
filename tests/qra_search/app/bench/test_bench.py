"""The benchmark of strategies: truncated logs, resumable cells, honest scores, tables and plots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from qra_search.app.bench import run as bench
from qra_search.app.bench import tables as scores
from qra_search.app.bench.run import _run_cell_safely, truncate_state
from qra_search.app.bench.tables import (
    collect_medians,
    compute_normalized_regret,
    find_lowest_losses,
    to_markdown,
    write_tables,
)
from qra_search.errors import BadInput
from qra_search.log.state import StudyState
from qra_search.schemas import Proposal
from qra_search.strategies import Strategy
from qra_search.strategies.simple import RandomStrategy
from qra_search.study.study import Study

TASK = "interaction-4-layer-measured"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of two strategies on two tasks with three seeds."""
    out = tmp_path_factory.mktemp("bench")
    tasks = [TASK, "additive-4-layer-measured"]
    assert bench.run_benchmark(tasks, ["random", "additive"], range(3), 12, out, workers=1) == (12, 0)
    write_tables(out)
    return out


def test_a_look_back_equals_a_search_that_ended_there() -> None:
    """A strategy is a pure function of the log, so looking back is the same as having stopped."""
    long, short = (bench.run_cell(TASK, "additive", 0, evaluations) for evaluations in (25, 10))
    assert long["checkpoints"][:1] == short["checkpoints"]
    assert [look["at"] for look in long["checkpoints"]] == [10, 25]


def test_a_search_shorter_than_the_first_checkpoint_is_judged_when_it_ends() -> None:
    row = bench.run_cell(TASK, "additive", 0, 0.5)
    medians = collect_medians([{"task": TASK, "strategy": "additive", "seed": 0, "evaluations": 0.5} | row])
    assert list(medians["additive"]) == [0.5] and len(row["checkpoints"][0]["handed"]) == 5


def test_a_cell_hands_over_plans_at_their_noise_free_loss() -> None:
    row = bench.run_cell(TASK, "random", 1, 15)
    evaluator = bench.build_benchmark_task(TASK, 1)
    study = Study(
        evaluator,
        strategy="random",
        evaluations=15,
        memory_budget=bench.list_task_budgets(evaluator.space),
        seed=1,
        charged=True,
    )
    result = study.run()
    look = truncate_state(study.state, 10)
    assert row["checkpoints"][0]["trials"] == len(look.trials)
    for budget, handed in zip(row["grid"], row["checkpoints"][0]["handed"], strict=True):
        fitting = [t for t in look.trials if evaluator.space.memory_bytes(t.plan) <= budget]
        assert handed == evaluator.true_loss(min(fitting, key=lambda t: t.loss).plan)
    assert row["trials"] == len(result.trials) and row["failed"] == 0


class LowFidelity(Strategy):
    """Asks for a random plan at low fidelity, then for the same plan in full."""

    name = "low"

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        last = state.trials[-1].proposal
        if last.fidelity < 1:
            return [replace(last, fidelity=1.0, predicted_loss=1.0)]
        return [replace(p, fidelity=0.25) for p in RandomStrategy().propose(state, 1)]


class Repeating(RandomStrategy):
    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        return [state.trials[0].proposal]


@pytest.fixture
def own_strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qra_search.app.bench.run.parse_strategy", lambda name: globals()[name]())


def test_low_fidelity_is_charged_at_its_share(own_strategies: None) -> None:
    row = bench.run_cell(TASK, "LowFidelity", 0, 12)
    short = (1.5 + row["trials"] - row["spent"]) / 0.75
    assert short > 3 and short == pytest.approx(round(short)), "each is charged a quarter"
    assert row["checkpoints"][0]["spent"] <= 10


def test_a_strategy_that_breaks_its_contract_fails_its_cell_alone(own_strategies: None) -> None:
    row = _run_cell_safely(TASK, "Repeating", 0, 30.0)
    assert (
        row["error"].startswith("StudyFailed: the strategy breaks its contract, it proposed Plan(")
        and "checkpoints" not in row
    )
    assert "/" not in row["error"]


def test_rows_name_commit_and_versions_but_no_place(small: Path) -> None:
    rows = bench.read_rows(small)
    assert len(rows) == 12
    for row in rows:
        assert row["environment"]["versions"]["numpy"] == np.__version__
        assert set(row["environment"]) == {"commit", "python", "versions", "machine", "system", "cores"}
        assert str(Path.home()) not in json.dumps(row) and str(small) not in json.dumps(row)


def test_a_second_call_runs_nothing_and_a_wider_one_only_what_is_new(small: Path, tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_bytes((small / "raw.jsonl").read_bytes())
    said: list[str] = []
    again = bench.run_benchmark(
        [TASK], ["random", "additive"], range(3), 12, tmp_path, workers=1, progress=said.append
    )
    assert said == ["resumed: 6 of 6 cells are finished, 0 left"]
    assert again == (0, 0)
    wider = bench.run_benchmark([TASK], ["random", "uniform"], [2, 3], 12, tmp_path, workers=1)
    assert wider == (3, 0)
    assert len(bench.read_rows(tmp_path)) == 15


def test_a_row_cut_short_by_a_kill_is_run_again(small: Path, tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text((small / "raw.jsonl").read_text()[:-40])
    tasks = [TASK, "additive-4-layer-measured"]
    assert bench.run_benchmark(tasks, ["random", "additive"], range(3), 12, tmp_path, workers=1) == (1, 0)

    def pick(folder: Path) -> list[str]:
        fields = ("task", "strategy", "seed", "checkpoints", "reference", "uniform", "trials", "spent")
        return sorted(json.dumps([row[field] for field in fields]) for row in bench.read_rows(folder))

    assert pick(tmp_path) == pick(small)


@pytest.mark.parametrize("line", ['{"a": 1}', "null", "half"])
def test_a_damaged_row_is_named_by_its_line(line: str, small: Path, tmp_path: Path) -> None:
    whole = (small / "raw.jsonl").read_text()
    (tmp_path / "raw.jsonl").write_text(f"{whole}{line}\n")
    with pytest.raises(
        BadInput, match=rf"raw.jsonl, line {whole.count(chr(10)) + 1} is not a row of a benchmark"
    ):
        bench.read_rows(tmp_path)


def make_row(strategy: str, handed: list[float], **changes) -> dict:
    """A row on a made-up landscape: best known 1, 1, 1 and best uniform 2, 2, 2 at the budgets 10, 20, 30."""
    return {
        "task": "a-1-layer-measured",
        "strategy": strategy,
        "seed": 0,
        "evaluations": 10.0,
        "budgets": [10, 20, 30],
        "grid": [10, 15, 20, 25, 30],
        "reference": [1.0] * 5,
        "uniform": [2.0] * 5,
        "checkpoints": [{"at": 10, "handed": handed}],
        "trials": 8,
        "failed": 0,
    } | changes


@pytest.mark.parametrize(
    ("handed", "share"),
    [
        ([1.0] * 5, 0.0),
        ([2.0] * 5, 1.0),
        ([2.0, 9.0, 1.0, 9.0, 1.0], 1 / 3),
        ([3.0, 1.0, 3.0, 1.0, 3.0], 2.0),
    ],
)
def test_the_share_left_is_summed_over_the_three_budgets(handed: list[float], share: float) -> None:
    row = make_row("x", handed)
    assert compute_normalized_regret(row, 10, find_lowest_losses([row])[row["task"], 0]) == pytest.approx(
        share
    )


def test_a_plan_better_than_the_reference_becomes_the_best_known() -> None:
    rows = [make_row("good", [0.5] * 5), make_row("fair", [1.0] * 5)]
    best = find_lowest_losses(rows)[rows[0]["task"], 0]
    assert [compute_normalized_regret(row, 10, best) for row in rows] == pytest.approx([0.0, 1 / 3])


def test_a_failed_cell_is_shown_as_failed_and_named() -> None:
    rows = [
        make_row("good", [1.0] * 5),
        {k: make_row("bad", [])[k] for k in ("task", "strategy", "seed", "evaluations")},
    ]
    rows[1]["error"] = "StudyFailed: so it went"
    text = to_markdown(rows)
    assert collect_medians(rows)["bad"] == {} and "| bad | 1 | failed | failed | 1 |" in text
    assert "| good | 1 | 0.000" in text and "Failures: bad: StudyFailed: so it went" in text


def test_tables_show_every_strategy_task_and_loss(small: Path) -> None:
    rows = bench.read_rows(small)
    best = find_lowest_losses(rows)
    mine = [
        compute_normalized_regret(r, 10, best[r["task"], r["seed"]])
        for r in rows
        if r["strategy"] == "random"
    ]
    (medians,) = write_tables(small)["medians"].values()
    assert medians["random"][10] == pytest.approx(np.median(mine))
    text = (small / "tables.md").read_text()
    for needed in ("## 4-layer-measured", "2 tasks, 3 seeds.", "Win/tie/loss", "lost to uniform"):
        assert needed in text
    assert f"| random | 6 | {np.median(mine):.3f} (" in text and "| additive | 6 |" in text


def test_searches_of_different_lengths_stand_in_one_table() -> None:
    long = make_row("long", [1.0] * 5) | {"evaluations": 20.0}
    long["checkpoints"] = [*long["checkpoints"], long["checkpoints"][0] | {"at": 20, "handed": [0.8] * 5}]
    again = make_row("long", [1.5] * 5)
    rows = [long, again, make_row("short", [2.0] * 5)]
    # Of two searches that reached a checkpoint the shorter one counts; one that ended before has no figure.
    assert collect_medians(rows) == {
        "long": {10: pytest.approx((1.5 - 0.8) / (2.0 - 0.8)), 20: pytest.approx(0.0)},
        "short": {10: pytest.approx(1.0)},
    }
    assert "| short | 1 | 1.000 (1.000–1.000) |  | 1.000 | 0 |" in to_markdown(rows)
    odd = make_row("odd", [2.0] * 5) | {"evaluations": 16.0}
    odd["checkpoints"] = [*odd["checkpoints"], odd["checkpoints"][0] | {"at": 16}]
    medians = collect_medians([long, odd])
    assert list(medians["long"]) == [10, 20]  # it was not looked at after 16
    assert list(medians["odd"]) == [10, 16]


def test_holm_equals_the_textbook_example() -> None:
    assert scores.adjust_p_values(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )


def test_bootstrap_intervals_cover_the_median() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        interval = scores.bootstrap_median(rng.normal(size=31))
        hits += interval.low <= 0.0 <= interval.high
    assert hits >= 88


def test_seeds_that_were_not_run_change_no_interval() -> None:
    values = np.array([[0.1, 0.4], [0.2, np.nan], [0.3, 0.2]])
    with_gaps = np.vstack([values, np.full((20, 2), np.nan)])
    assert scores.bootstrap_median(with_gaps) == scores.bootstrap_median(values)


def test_wins_ties_and_losses_are_counted_over_the_blocks_that_both_have() -> None:
    shares = np.array(
        [[0.1, 0.2, np.nan], [0.2, 0.2, 0.0], [0.3, 0.1, 0.0], [0.1, 0.5, 0.5], [0.3, np.nan, 0.5]]
    )
    pairs = {(pair.first, pair.second): pair for pair in scores.compare_strategies(shares, ("a", "b", "c"))}
    assert pairs["a", "b"][2:5] == (2, 1, 1) and pairs["a", "c"][2:5] == (2, 0, 2)
    (alone,) = scores.compare_strategies(shares[:4, :2], ("a", "b"))
    assert alone.p == pytest.approx(stats.wilcoxon(shares[:4, 0], shares[:4, 1], zero_method="zsplit").pvalue)


def test_a_seed_at_which_every_strategy_failed_is_a_failure_of_each() -> None:
    rows = [make_row("a", [1.25] * 5), make_row("a", [], seed=1, error="KeyError", checkpoints=[])]
    shares = scores.collect_normalized_regrets(rows, 10.0, scores.find_lowest_losses(rows))
    assert shares["a"].tolist() == [[pytest.approx(1 / 4), np.inf]]
    assert "| a | 2 | failed | failed | 1 |" in scores.to_markdown(rows)


def test_a_task_with_nothing_to_gain_over_uniform_has_no_share() -> None:
    rows = [make_row(name, [1.0] * 5, seed=seed, uniform=[1.0] * 5) for name in "ab" for seed in (0, 1)]
    assert np.isnan(scores.collect_normalized_regrets(rows, 10.0, scores.find_lowest_losses(rows))["a"]).all()
    text = scores.to_markdown(rows)
    assert "| a | 0 |  |  | 0 |" in text and "| b | 0 |  |  | 0 |" in text
