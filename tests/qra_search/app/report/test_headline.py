"""The finding in a sentence: what a plan gained, over what, and whether that may be chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qra_search import Plan, search
from qra_search.app.compare import Comparison, Role, TunedPlan
from qra_search.app.report import formatting
from qra_search.app.report.finding import (
    make_comparison_headline,
    make_headline,
    summarize_comparison,
    summarize_run,
)
from qra_search.app.report.tables import make_allocation_table
from qra_search.schemas import Sensitivities, TuningRecord
from qra_search.space.memory import format_bytes
from qra_search.study.result import EvaluatedPlan, LossChange, SearchResult, UniformComparison
from qra_search.testing.scenarios import ToyEvaluator, make_toy_space

TWO = make_toy_space(2, bits=(2, 3, 4), ranks=(8,))
PLAN, UNIFORM = Plan((2, 4), (8, 8)), Plan((3, 3), (8, 8))
RATIOS = (0.7, 0.8, 0.9, 0.95) * 3


def tuned(role: Role, plan: Plan, nats: Sequence[float], memory_mib: int = 100, **fields: Any) -> TunedPlan:
    record = TuningRecord(
        plan, 0, 9, memory_mib << 20, row_nats=tuple(nats), row_tokens=(1,) * len(nats), **fields
    )
    return TunedPlan(role, (record,))


def compared(
    ratios: Sequence[float] = RATIOS,
    uniform: float | None = 1.71,
    untuned: float | None = None,
    **fields: Any,
) -> Comparison:
    """A comparison in whose rows the plan's loss is these shares of the uniform plan's."""
    tunings = [tuned("plan", PLAN, [1.71 * ratio for ratio in ratios], 108, **fields)]
    if uniform is not None:
        tunings.append(tuned("uniform", UNIFORM, [uniform] * len(ratios)))
    if untuned is not None:
        tunings.append(tuned("untuned", Plan((16, 16), (0, 0)), [untuned]))
    return Comparison(TWO, 108 << 20, tuple(tunings))


def test_the_headline_gives_both_losses_the_budget_the_baselines_size_and_one_signed_change() -> None:
    sentence = summarize_comparison(compared())
    assert sentence.startswith(
        "The plan's test loss is 1.432 instead of 1.710 (uniform 3 bits, rank 8, 100.0 MiB, 8.0 MiB smaller), "
        "within 108.0 MiB: "
    )
    assert sentence.endswith(").") and "+" not in sentence


def test_the_first_metric_of_both_stands_beside_the_losses_with_the_interval_of_its_difference() -> None:
    """By hand: of 100 rows 60 and 50 right, 20 by the plan alone, 10 by the other; deviation of the rows 0.541."""
    own, other = (1.0,) * 60 + (0.0,) * 40, (1.0,) * 40 + (0.0,) * 50 + (1.0,) * 10
    fields = [{"row_scores": {"exact_match": scores}} for scores in (own, other)]
    both = [tuned("plan", PLAN, RATIOS, 108, **fields[0]), tuned("uniform", UNIFORM, RATIOS, **fields[1])]
    sentence = summarize_comparison(Comparison(TWO, 108 << 20, tuple(both)))
    assert "Exact match 60.0% instead of 50.0%: +10.0 points (−0.6 to +20.6), too small to tell" in sentence
    both[1] = tuned("uniform", UNIFORM, RATIOS, **fields[0])
    assert "Exact match 60.0% instead of 60.0%." in summarize_comparison(
        Comparison(TWO, 108 << 20, tuple(both))
    )


def test_what_makes_a_plan_worthless_is_said_first() -> None:
    """Both worse than the untuned model, or answers that are empty; not where one of both is better."""
    both = summarize_comparison(compared(untuned=1.2))
    assert both.startswith("Both models are worse than untuned, whose test loss is 1.200.")
    assert summarize_comparison(compared(untuned=1.2, uniform=None)).startswith("The tuned model is worse")
    assert summarize_comparison(compared(untuned=1.5)) == summarize_comparison(compared())
    empty = ({"prompt": "a", "wanted": "b", "before": "c", "after": " "},)
    assert summarize_comparison(compared(samples=empty)).startswith("The tuned model answers nothing")
    right = {"exact_match": (1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0)}
    flattered = compared(row_scores=right, commonest_scores={"exact_match": 0.3})
    answer = make_comparison_headline(flattered)
    assert answer.startswith("The most common answer, given to every row, scores 30.0%")
    assert "Deploy the plan (108.0 MiB)" in answer, "the first line names a model all the same"
    assert "most common" not in summarize_comparison(flattered, headline=answer)
    assert summarize_comparison(flattered).startswith(
        "The most common answer, given to every row, scores 30.0%"
    )
    unscored = compared(
        commonest_scores={"exact_match": 0.3}
    )  # of scores that are not finite, or of one seed alone
    assert "most common" not in summarize_comparison(unscored)
    learnt = compared(row_scores=right, commonest_scores={"exact_match": 0.01})
    assert "most common" not in summarize_comparison(learnt)


def test_the_headline_says_whether_choosing_by_layer_paid() -> None:
    shuffled = Plan((4, 2), (8, 8))
    for ratio, text in (
        (1.0, "The plan shuffled over linears has a test loss of 1.710; choosing by layer brings −16"),
        (
            0.7,
            "The plan shuffled over linears has a test loss of 1.197; choosing by layer does not pay here, +19",
        ),
    ):
        comparison = compared()
        control = tuned("shuffled", shuffled, [1.71 * ratio] * len(RATIOS), 108)
        assert text in summarize_comparison(replace(comparison, tunings=(*comparison.tunings, control)))
    few = compared(ratios=(0.8,), uniform=None)
    control = tuned("shuffled", shuffled, [1.71], 108)
    assert "nothing says whether" in summarize_comparison(replace(few, tunings=(*few.tunings, control)))


def test_a_difference_whose_interval_holds_zero_is_neither_gain_nor_loss() -> None:
    for shift in (-0.05, 0.05):
        sentence = summarize_comparison(compared([1 + shift + wide for wide in (-0.4, 0.4) * 6]))
        assert "a difference too small to tell from chance, " in sentence and sentence.count("chance") == 1
        assert "instead" not in sentence and "beats" not in sentence


def test_the_headline_admits_defeat_absence_and_too_few_rows() -> None:
    worse = summarize_comparison(compared([1.1, 1.2] * 6))
    assert worse.startswith(
        "None of the plans found within 108.0 MiB beats uniform 3 bits, rank 8, 100.0 MiB"
    )
    assert "no uniform plan was tuned with the same settings" in summarize_comparison(compared(uniform=None))
    assert "nothing says whether the difference is chance" in summarize_comparison(compared([0.8]))
    assert summarize_comparison(compared([1.2])).endswith("(it may be chance).")
    nothing = search(ToyEvaluator(), strategy="random", evaluations=1)
    assert (
        summarize_run(replace(nothing, candidates=(), trials=()))
        == "No plan has been evaluated with success yet."
    )
    assert "beats" in summarize_comparison(compared(failed="diverged: training loss is nan"))


@pytest.mark.parametrize("damage", [0.3, 0.01])
def test_before_tuning_the_headline_is_predicted_and_none_if_it_may_be_chance(damage: float) -> None:
    """A step from 3 to 4 bits takes away this damage of each of two groups."""
    three, four = (TWO.memory_bytes(Plan((b, b), (8, 8))) for b in (3, 4))
    by_bits = Sensitivities(np.array([[9.0, damage, 0.0]] * 2), np.zeros((2, 1)), repair=0.0)
    mixed = SearchResult(TWO, (), by_bits, ((three + four) // 2,), 0, strategy="qra", allocations={})
    lead = f"{damage:.3f} nats closer to 16 bits than"
    assert f"): before tuning it is predicted {lead} uniform 3 bits, rank 8" in summarize_run(mixed)
    assert (f"predicted to be {lead} the best uniform plan" in make_headline(mixed)) is (damage > 0.1)


def test_a_change_on_validation_data_may_be_chance_within_two_standard_errors() -> None:
    best = EvaluatedPlan(PLAN, 1.0, 0.1, 9, 1.0)
    near, far = (
        UniformComparison(9, best, replace(best, plan=UNIFORM, loss=loss)).change for loss in (1.2, 1.4)
    )
    assert near is not None and near.may_be_chance  # the difference's standard error is 0.14
    assert far is not None and not far.may_be_chance
    assert formatting.format_change(far).startswith("−28.6% (−48.8 to −8.4)")


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (-4e-4, "−0.04% (−0.05 to −0.03)"),
        (3e-6, "+0.0003% (−0.0097 to +0.0103)"),
        (0.0, "+0.0% (−0.0 to +0.0)"),
    ],
)
def test_a_small_change_has_the_digits_that_tell_it_from_none(share: float, text: str) -> None:
    assert formatting.format_change(LossChange(share, (share - 1e-4, share + 1e-4))) == text


def test_the_shuffled_plan_stands_beside_the_uniform_ones_by_its_predicted_loss() -> None:
    """A group's damage at 2 bits is 0.1, another's 0.5: exchanged, the plan would have 0.4 nats more."""
    damage = Sensitivities(np.array([[0.1, 0.09, 0.0], [0.5, 0.4, 0.0]]), np.zeros((2, 1)), repair=0.0)
    result = SearchResult(TWO, (), damage, (TWO.memory_bytes(PLAN),), 0, strategy="qra", allocations={})
    allocation = result.allocation()
    assert allocation is not None and allocation.plan == PLAN
    (row,) = (row for row in make_allocation_table(allocation, result).rows if row[0] == "shuffled")
    assert row[1:3] == (format_bytes(allocation.memory_bytes), "+0.400")


def test_the_verdict_is_a_line_of_the_plans_figure_and_that_of_16_bit_lora() -> None:
    nothing = search(ToyEvaluator(TWO), strategy="random", evaluations=1)
    assert make_headline(nothing, compared()) == (
        "Deploy the plan (108.0 MiB): test loss 1.432, uniform 3 bits, rank 8 test loss 1.710 (16.3% worse)"
    )
    worthless = make_headline(nothing, compared(untuned=1.2))
    assert worthless.startswith("Both models are worse than untuned") and "Deploy" not in worthless
    assert make_headline(nothing).endswith("KiB; it was not evaluated"), (
        "predicted to be better than what was evaluated"
    )
    sixteen = tuned(
        "16-bit", Plan((16, 16), (8, 8)), [1.2] * 12, 300, row_scores={"accuracy": (1.0,) * 12, "f1": (9.0,)}
    )
    for scores, line in (
        ({"accuracy": (1.0, 0.0) * 6}, "50.0% right, 16-bit LoRA 100.0% (50.0 points better)"),
        ({"f1": (7.0,)}, "f1 7, 16-bit LoRA f1 9 (2 better)"),
    ):
        comparison = compared(uniform=None, row_scores=scores)
        beside = replace(comparison, tunings=(*comparison.tunings, sixteen))
        line = f"Deploy the plan (108.0 MiB): {line}, a third of its memory"
        assert make_headline(nothing, beside) == line
    comparison = compared(uniform=None, row_scores={"accuracy": (1.0, 0.0) * 6})
    scores = {"accuracy": (1.0,) * 7 + (0.0,) * 5}
    shuffled = tuned("shuffled", comparison.chosen.plan, [1.4] * 12, 108, row_scores=scores)
    line = make_headline(nothing, replace(comparison, tunings=(*comparison.tunings, sixteen, shuffled)))
    assert line.endswith(
        "(50.0 points better), a third of its memory; the plan shuffled 58.3% (within chance)"
    )
