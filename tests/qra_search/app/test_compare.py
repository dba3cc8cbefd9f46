"""Comparisons: computed from records alone, of what was tuned alike, with intervals over rows and seeds."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, t, ttest_ind

from qra_search import BadInput, Group, Linear, Plan, SearchSpace, search
from qra_search.app.baselines import choose_next_rung, select_baselines, shuffle_plan
from qra_search.app.compare import Comparison, TunedPlan, compare, compare_losses, compare_scores
from qra_search.app.report import formatting
from qra_search.app.report.finding import make_headline, summarize_comparison
from qra_search.schemas import TuningRecord
from qra_search.testing.scenarios import ToyEvaluator, make_toy_space

SPACE = make_toy_space()
PLAN = Plan((2, 3, 4, 8, 3), (4, 8, 16, 4, 8))
LOW, HIGH = Plan((2,) * 5, (4,) * 5), Plan((3,) * 5, (4,) * 5)
UNTUNED, SIXTEEN = (SPACE.unquantized.uniform(16, rank) for rank in (0, SPACE.ranks[-1]))
LIMIT = SPACE.memory_bytes(PLAN)


def record(plan: Plan | None, loss: float, *, seed: int = 0, rows: int = 12, **fields: Any) -> TuningRecord:
    assert plan is not None
    nats = tuple(loss + (i % 3 - 1) / 10 for i in range(rows))
    return TuningRecord(
        plan,
        seed,
        fields.pop("steps", 5),
        SPACE.find_space(plan).memory_bytes(plan),
        1.0,
        nats,
        (1,) * rows,
        **fields,
    )


def compared(*records: TuningRecord, plan: Plan = PLAN) -> Comparison:
    comparison = compare(records, SPACE, plan, LIMIT, {})
    assert comparison is not None
    return comparison


def test_a_comparison_holds_what_was_tuned_alike_within_the_budget() -> None:
    big, other = SPACE.uniform_plans()[-1], Plan((2, 2, 3, 2, 2), (4,) * 5)
    assert SPACE.memory_bytes(big) > LIMIT > SPACE.memory_bytes(other)
    comparison = compared(
        record(PLAN, 4.0),
        record(LOW, 6.0),
        record(HIGH, 5.0, settings={"steps": 9}),
        record(big, 1.0),
        record(other, 3.0),
        record(SIXTEEN, 2.0),
        record(UNTUNED, 9.0, steps=0),
        record(shuffle_plan(SPACE, PLAN), 4.5),
    )
    assert {t.role: t.loss for t in comparison.tunings} == {
        "plan": pytest.approx(4.0),
        "uniform": pytest.approx(6.0),
        "16-bit": pytest.approx(2.0),
        "untuned": pytest.approx(9.0),
        "shuffled": pytest.approx(4.5),
        "other": pytest.approx(3.0),
    }
    assert (
        comparison.chosen.plan == PLAN and comparison.baseline is not None and comparison.baseline.plan == LOW
    )
    assert [t.memory_bytes for t in comparison.tunings] == sorted(t.memory_bytes for t in comparison.tunings)
    names = [formatting.format_role(t.role, t.plan, SPACE) for t in comparison.tunings]
    assert "untuned, 16 bits" in names and f"16-bit LoRA, rank {SPACE.ranks[-1]}" in names
    assert json.dumps(comparison.to_dict(), allow_nan=False)


def test_only_tunings_with_the_settings_that_are_given_are_compared() -> None:
    records = [
        record(plan, loss, settings={"steps": steps})
        for plan in (PLAN, LOW)
        for steps, loss in ((1, 5.0), (2, 4.0))
    ]
    for steps, loss in ((1, 5.0), (2, 4.0)):
        found = compare(records, SPACE, PLAN, LIMIT, {"steps": steps})
        assert found is not None and [t.loss for t in found.tunings] == pytest.approx([loss, loss])
    assert compare(records, SPACE, HIGH, LIMIT, {"steps": 1}) is None


def test_the_smallest_that_is_as_good_as_the_best_is_deployed() -> None:
    """Of 200 rows the plan has 190 right, 2 bits everywhere as many but for the last ones."""
    own = {"accuracy": (1.0,) * 190 + (0.0,) * 10}
    cases = (
        (3, 4.05, None, LOW),
        (3, 6.0, None, PLAN),
        (30, 4.05, None, PLAN),
        (30, 6.0, 20.0, LOW),
        (-3, 6.0, None, LOW),
    )
    for wrong, loss, tolerance, plan in cases:
        right = 190 - wrong
        other = {"accuracy": (1.0,) * right + (0.0,) * (200 - right)}
        comparison = compared(
            record(PLAN, 4.0, rows=200, row_scores=own), record(LOW, loss, rows=200, row_scores=other)
        )
        found = replace(comparison, tolerance=tolerance).deployed
        assert found is not None and found.plan == plan, (wrong, loss, tolerance)
    constant = replace(comparison.chosen.records[0], commonest_scores={"accuracy": 0.95})
    judged = compared(constant, record(LOW, 6.0, rows=200, row_scores=own))
    assert judged.judging_metric == "" and judged.unbeaten_commonest_scores == {"accuracy": 0.95}
    assert judged.deployed is judged.chosen, "by the loss, as a constant answer is as good"
    named = replace(compared(record(LOW, 6.0), record(PLAN, 4.0), plan=LOW), is_named=True)
    assert named.deployed is named.chosen
    big, sixteen = record(PLAN, 4.0), record(SIXTEEN, 1.0)
    assert compared(big, sixteen).deployed.plan == PLAN, "16-bit LoRA is beside the budget"  # type: ignore[union-attr]
    assert compared(record(PLAN, 0.0, failed="diverged")).deployed is None


def test_seeds_of_a_plan_are_one_entry_with_a_standard_error() -> None:
    tuned = compared(record(PLAN, 4.01, seed=1), record(PLAN, 4.0)).chosen
    assert [r.test_loss for r in tuned.records] == pytest.approx([4.0, 4.01]) and tuned.loss == pytest.approx(
        4.005
    )
    # Two values a hundredth apart: deviation 0.01 / sqrt(2), and its mean's error that over sqrt(2).
    assert tuned.loss_error == pytest.approx(0.005)


def test_a_mean_over_seeds_is_not_a_record_of_one() -> None:
    tuned = compared(record(PLAN, 1.0, seed=0), record(PLAN, 2.0, seed=1)).chosen
    assert not isinstance(tuned, TuningRecord) and [one.seed for one in tuned.records] == [0, 1]
    assert tuned.loss == 1.5 and not any(hasattr(tuned, name) for name in ("seed", "id", "validation_loss"))


def test_the_baseline_is_the_best_uniform_plan_with_as_many_seeds_if_there_is_one() -> None:
    two = [record(PLAN, 4.0), record(PLAN, 4.0, seed=1), record(LOW, 6.0), record(LOW, 6.0, seed=1)]
    assert compared(*two, record(HIGH, 5.0)).baseline.plan == LOW  # type: ignore[union-attr]
    assert compared(record(PLAN, 4.0), record(LOW, 6.0), record(HIGH, 5.0)).baseline.plan == HIGH  # type: ignore[union-attr]
    alone = compared(record(HIGH, 5.0), record(LOW, 6.0), plan=HIGH)
    assert alone.baseline is alone.chosen and alone.change is None
    lost = compared(record(PLAN, 4.0), record(LOW, 0.0, failed="diverged: training loss is nan"))
    assert lost.baseline is None and lost.metric_names == []


def test_a_seed_that_diverged_takes_the_plans_metrics_and_no_sentence_fails() -> None:
    scored = {"row_scores": {"exact_match": (1.0,) * 4}}
    diverged = {"failed": "diverged: training loss is nan"}
    lost = compared(
        record(PLAN, 4.0, **scored), record(PLAN, 0.0, seed=1, **diverged), record(LOW, 6.0, **scored)
    )
    assert lost.metric_names == [] and "exact_match" not in str(lost)
    assert "diverged" in str(lost) and summarize_comparison(lost)
    sixteen = compared(
        record(PLAN, 4.0, **scored), record(LOW, 6.0, **scored), record(SIXTEEN, 0.0, **diverged)
    )
    assert sixteen.metric_names == ["exact_match"]
    assert "16-bit LoRA diverged" in make_headline(
        search(ToyEvaluator(SPACE), evaluations=1, strategy="random"), sixteen
    )


def test_16_bit_lora_has_its_role_if_16_is_a_width_of_the_space() -> None:
    space = make_toy_space(bits=(2, 16))
    plan, sixteen = space.uniform_plans()[0], space.uniform(16, space.ranks[-1])
    assert plan.bits[0] == 2 and sixteen is not None
    for budget, role in ((space.memory_bytes(plan), "16-bit"), (space.memory_bytes(sixteen), "uniform")):
        comparison = compare([record(plan, 4.0), record(sixteen, 3.0)], space, plan, budget, {})
        assert comparison is not None and [t.role for t in comparison.tunings] == ["plan", role]


def of_losses(*losses: float, rows: tuple[float, ...] = ()) -> TunedPlan:
    """Losses by seed; those of rows, or a single row."""
    nats = [tuple(x + loss - np.mean(rows) for x in rows) if rows else (loss,) for loss in losses]
    tokens = (1,) * (len(rows) or 1)
    records = [
        TuningRecord(PLAN, seed, 1, 9, row_nats=own, row_tokens=tokens) for seed, own in enumerate(nats)
    ]
    return TunedPlan("plan", tuple(records))


def test_without_rows_the_spread_over_seeds_is_the_interval_and_one_seed_has_none() -> None:
    change = compare_losses(of_losses(1.0), of_losses(2.0))
    assert change is not None and (change.share, change.interval, change.may_be_chance) == (-0.5, None, False)
    change = compare_losses(of_losses(1.0, 1.2), of_losses(2.0, 2.0))
    # Standard error of the mean of two losses that differ by 0.2: 0.1, a share of 1 / 11 of their mean. Student's t of
    # 2 degrees of freedom is 4.303.
    assert change is not None and change.interval is not None
    assert np.log1p(change.interval) == pytest.approx(np.log(0.55) + np.array([-1, 1]) * 4.303 / 11, abs=1e-4)


def test_rows_and_seeds_widen_the_interval_together_and_it_stays_above_minus_all() -> None:
    rows = tuple(np.random.default_rng(4).normal(1.0, 0.8, 40))
    alone = compare_losses(of_losses(1.0, rows=rows), of_losses(1.1, rows=(1.1,) * 40))
    both = compare_losses(of_losses(0.7, 1.3, rows=rows), of_losses(1.1, 1.1, rows=(1.1,) * 40))
    assert alone is not None and both is not None and alone.interval is not None and both.interval is not None
    assert -1 < both.interval[0] < alone.interval[0] < alone.interval[1] < both.interval[1]
    assert both.may_be_chance and both.is_lower


def test_metrics_are_means_over_rows_and_seeds_with_intervals_over_rows() -> None:
    right = (1.0,) * 16 + (0.0,) * 48
    tuned = compared(
        record(PLAN, 4.0, row_scores={"accuracy": right, "f1": (0.5,) * 3}),
        record(PLAN, 4.0, seed=1, row_scores={"accuracy": right[::-1]}),
    ).chosen
    assert tuned.metrics == {"accuracy": 0.25}
    low, high = tuned.compute_metric_interval("accuracy") or (0, 0)
    assert (low, high) == pytest.approx((0.160, 0.368), abs=1e-3)  # Wilson's for 16 of 64, by scipy
    assert formatting.format_metric("accuracy", 0.25, (low, high)) == "25.0% (16 to 37)"
    assert formatting.format_metric("choice_loss", 0.25, None) == "0.25"


def of_scores(*right_by_seed: int, rows: int = 64) -> TunedPlan:
    """So many right answers of each seed, among so many rows."""
    scores = [(1.0,) * right + (0.0,) * (rows - right) for right in right_by_seed]
    return compared(
        *(record(PLAN, 4.0, seed=i, row_scores={"accuracy": row}) for i, row in enumerate(scores))
    ).chosen


def test_the_spread_over_seeds_widens_the_interval_of_a_metric_and_of_a_difference() -> None:
    tuned = of_scores(32, 40, 42)
    low, high = tuned.compute_metric_interval("accuracy") or (0, 0)
    mean, rows = tuned.metrics["accuracy"], binomtest(38, 64).proportion_ci(0.95, method="wilson")
    seeds = t.interval(0.95, 2, mean, np.std([0.5, 0.625, 0.65625], ddof=1) / 3**0.5)
    assert mean == pytest.approx(38 / 64)
    for end, own, of_seeds in ((low, rows.low, seeds[0]), (high, rows.high, seeds[1])):
        assert abs(end - mean) == pytest.approx(np.hypot(own - mean, of_seeds - mean), abs=1e-3)
    other = of_scores(30, 28, 35)
    gain, interval = compare_scores(tuned, other, "accuracy")
    found = ttest_ind([32, 40, 42], [30, 28, 35]).confidence_interval(0.95)
    differences = np.subtract(tuned.row_scores["accuracy"], other.row_scores["accuracy"])
    half = np.hypot((found.high - found.low) / 2 / 64, 1.96 * np.std(differences, ddof=1) / 8)
    assert gain == pytest.approx(7 / 64) and interval == pytest.approx((gain - half, gain + half), abs=1e-3)
    wide = of_scores(60, 64).compute_metric_interval("accuracy")
    assert wide is not None and wide[0] >= 0 and wide[1] == 1.0, "a share stays one"


def test_baselines_are_the_uniform_plans_that_fit_the_best_of_them_or_none() -> None:
    result = search(ToyEvaluator(SPACE), strategy="random", evaluations=8, memory_budget="uniform4r8")
    limit = result.memory_budgets[0]
    fitting = [p for p in SPACE.uniform_plans() if SPACE.memory_bytes(p) <= limit]
    assert select_baselines(SPACE, PLAN, limit, "all", result) == [*fitting, shuffle_plan(SPACE, PLAN)]
    assert len(fitting) > 1
    best = min((c for c in result.uniform if c.memory_bytes <= limit), key=lambda c: c.loss)
    assert select_baselines(SPACE, PLAN, limit, "best", result) == [best.plan]
    unknown = replace(result, candidates=(), sensitivities=None)
    assert select_baselines(SPACE, PLAN, limit, "best", unknown) == fitting[-1:]
    assert select_baselines(SPACE, PLAN, limit, "none", result) == []


def test_a_shuffled_plan_has_the_same_choices_on_linears_of_the_same_shape() -> None:
    shapes = [(8, 64), (64, 8)] * 4
    linears = [
        Linear(name=f"g{i}", out_features=out, in_features=into) for i, (out, into) in enumerate(shapes)
    ]
    space = SearchSpace(groups=[Group(name=linear.name, linears=(linear,)) for linear in linears])
    plan = Plan((2, 8, 3, 8, 4, 8, 4, 8), (4, 8, 8, 8, 4, 8, 4, 8))
    shuffled = shuffle_plan(space, plan)
    assert shuffled != plan and space.memory_bytes(shuffled) == space.memory_bytes(plan)
    for side in (0, 1):
        choices = [Counter(list(zip(p.bits, p.ranks, strict=True))[side::2]) for p in (plan, shuffled)]
        assert choices[0] == choices[1]
    assert shuffle_plan(space, plan) == shuffled != shuffle_plan(space, plan, seed=7)
    with pytest.raises(BadInput, match="has no shuffled counterpart"):
        shuffle_plan(space, Plan((2, 8) * 4, (4, 8) * 4))


@pytest.mark.parametrize("smallest", range(6))
def test_the_rungs_of_a_ladder_find_the_smallest_that_is_as_good(smallest: int) -> None:
    """Plans below one lose 10% of the best's loss, those above it nothing."""
    rungs = [plan for plan in SPACE.uniform_plans() if plan.ranks[0] == 8 or plan.bits[0] == 2]
    assert len(rungs) == 6
    records = [record(rungs[2], 4.0 if smallest <= 2 else 4.4)]
    while True:
        comparison = compare(records, SPACE, rungs[2], SPACE.memory_bytes(rungs[-1]), {})
        assert comparison is not None
        if (plan := choose_next_rung(rungs, comparison)) is None:
            break
        records.append(record(plan, 4.0 if rungs.index(plan) >= smallest else 4.4))
    assert comparison.deployed is not None and comparison.deployed.plan == rungs[smallest]
    assert len(records) <= 4
