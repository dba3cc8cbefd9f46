"""The parts of a report: colours, layout, words, curves, and what a running search has found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import evil_space, write_curve

from qra_search import Group, Linear, Plan, SearchSpace, search
from qra_search.allocate.sensitivities import Sensitivities
from qra_search.evaluation.tuning_record import TuningRecord
from qra_search.report import colors, formatting
from qra_search.report.data import read_curve, smoothed
from qra_search.report.finding import comparison_headline, headline, verdict
from qra_search.report.layout import damage_steps, heat_maps, layout
from qra_search.report.progress import BestSoFar
from qra_search.runs.comparison import Comparison, Role, TunedPlan
from qra_search.study.candidates import EvaluatedPlan, UniformComparison
from qra_search.testing.scenarios import ToyEvaluator, toy_space


def space(places: list[tuple[str, int | None]]) -> SearchSpace:
    return SearchSpace(
        groups=tuple(
            Group(name=f"g{i}", linears=(Linear(name=f"g{i}", out_features=8, in_features=64),), kind=k, depth=d)
            for i, (k, d) in enumerate(places)
        )
    )


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", colors.RAMPS)
def test_a_ramp_has_as_many_colours_as_steps_and_text_stands_out_from_its_ends(name: str, dark: bool) -> None:
    for steps in range(1, 9):
        assert len(set(colors.ramp(name, steps, dark=dark))) == steps
    first, *_, last = (colors.text_on(color) for color in colors.ramp(name, 6, dark=dark))
    assert (first, last) == ((colors.PAPER, colors.INK) if dark else (colors.INK, colors.PAPER))


def test_groups_lie_by_kind_and_layer() -> None:
    grid = layout(space([("q", 0), ("v", 0), ("q", 1), ("v", 2)]))
    assert grid.rows == ("q", "v")
    assert grid.columns == ("0", "1", "2")
    assert grid.cells == ((0, 2, None), (1, None, 3))


@pytest.mark.parametrize("places", [[("q", None)] * 40, [("q", 0)] * 40])
def test_groups_that_say_no_place_of_their_own_lie_in_order(places: list[tuple[str, int | None]]) -> None:
    grid = layout(space(places))
    assert [g for row in grid.cells for g in row if g is not None] == list(range(40))
    assert all(len(row) == len(grid.columns) for row in grid.cells)


def test_cells_and_legend_of_the_sensitivities_have_one_unit() -> None:
    known = evil_space()
    damage = np.geomspace(0.004, 0.9, len(known))[:, None] * np.array([[1.0, 0.5, 0.1, 0.0]])
    lowest = np.zeros((2, len(known)), dtype=int)
    sensitivities = Sensitivities(damage, np.zeros((len(known), len(known.ranks))))
    found = heat_maps(known, known.decode(lowest), sensitivities)[-1]
    assert "in thousandths of a nat" in found.remark
    low, high = (float(text) for text in found.legend[-1].split(" to "))
    assert low < float(found.labels[-1]) == high == 900


def test_the_steps_of_a_ramp_hold_their_values() -> None:
    values = np.array([0.0, 0.001, 0.01, 0.1, 1.0])
    levels, labels = damage_steps(values)
    assert levels.tolist() == sorted(levels.tolist())
    assert levels[0] == 0 and levels[-1] == len(labels) - 1
    assert damage_steps(np.zeros(3))[0].tolist() == [0, 0, 0]
    assert damage_steps(np.full(3, 0.5))[1] == ["0.5"]
    _, labels = damage_steps(np.array([0.13, 1.0, 130.0]))
    assert labels[0].startswith("0.13 to ") and labels[-1].endswith(" to 130"), "without exponents"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12 ms"), (3.21, "3.2 s"), (41.4, "41 s"), (372, "6 min 12 s"), (7500, "2 h 05 min"),
     (math.nan, "unknown")],
)  # fmt: skip
def test_durations_are_as_people_write_them(seconds: float, text: str) -> None:
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize("pair", [("1.43", "1.71"), ("1.431", "1.435")])
def test_two_losses_get_the_digits_that_tell_them_apart(pair: tuple[str, str]) -> None:
    assert formatting.pair_text(float(pair[0]) + 2e-4, float(pair[1]) - 1e-4) == pair


TWO = toy_space(2, bits=(2, 3, 4), ranks=(8,))
PLAN, UNIFORM = Plan((2, 4), (8, 8)), Plan((3, 3), (8, 8))
RATIOS = (0.7, 0.8, 0.9, 0.95) * 3


def tuned(role: Role, plan: Plan, nats: Sequence[float], memory_mib: int = 100, **fields: Any) -> TunedPlan:
    record = TuningRecord(plan, 0, 9, memory_mib << 20, row_nats=tuple(nats), row_tokens=(1,) * len(nats), **fields)
    return TunedPlan.of_seeds(role, (record,))


def compared(ratios: Sequence[float] = RATIOS, uniform: float | None = 1.71, untuned: float | None = None,
             **fields: Any) -> Comparison:  # fmt: skip
    """A comparison in whose rows the plan's loss is these shares of the uniform plan's."""
    tunings = [tuned("plan", PLAN, [1.71 * ratio for ratio in ratios], 108, **fields)]
    if uniform is not None:
        tunings.append(tuned("uniform", UNIFORM, [uniform] * len(ratios)))
    if untuned is not None:
        tunings.append(tuned("untuned", Plan((16, 16), (0, 0)), [untuned]))
    return Comparison(TWO, 108 << 20, tuple(tunings))


def test_the_headline_gives_both_losses_the_budget_the_baselines_size_and_one_signed_change() -> None:
    sentence = comparison_headline(compared())
    assert sentence.startswith(
        "Test loss 1.43 instead of 1.71 (uniform 3 bits, rank 8, 100.0 MiB, 8.0 MiB smaller), within 108.0 MiB: −16.3 %"
    )
    assert sentence.endswith(").") and "+" not in sentence


def test_what_makes_a_plan_worthless_is_said_first() -> None:
    """Both worse than the untuned model, or answers that are empty; not where one of both is better."""
    both = comparison_headline(compared(untuned=1.2))
    assert both.startswith("Both models are worse than untuned, whose test loss is 1.200.")
    assert comparison_headline(compared(untuned=1.2, uniform=None)).startswith("The tuned model is worse")
    assert comparison_headline(compared(untuned=1.5)) == comparison_headline(compared())
    empty = ({"prompt": "a", "wanted": "b", "before": "c", "after": " "},)
    assert comparison_headline(compared(samples=empty)).startswith("The tuned model answers nothing")
    judged = compared(samples=empty, row_scores={"choice_loss": (0.7,)})
    assert not comparison_headline(judged).startswith("The tuned"), "a choice is judged by its likelihood"


def test_the_headline_says_whether_choosing_by_layer_paid() -> None:
    shuffled = Plan((4, 2), (8, 8))
    for ratio, text in (
        (1.0, "shuffled over linears have 1.71: choosing by layer brings −16"),
        (0.7, "shuffled over linears have 1.20: choosing by layer does not pay here, +19"),
    ):
        comparison = compared()
        control = tuned("shuffled", shuffled, [1.71 * ratio] * len(RATIOS), 108)
        assert text in comparison_headline(replace(comparison, tunings=(*comparison.tunings, control)))
    few = compared(ratios=(0.8,), uniform=None)
    control = tuned("shuffled", shuffled, [1.71], 108)
    assert "nothing says whether" in comparison_headline(replace(few, tunings=(*few.tunings, control)))


def test_a_difference_whose_interval_holds_zero_is_neither_gain_nor_loss() -> None:
    for shift in (-0.05, 0.05):
        sentence = comparison_headline(compared([1 + shift + wide for wide in (-0.4, 0.4) * 6]))
        assert "a difference too small to tell from chance, " in sentence and ", chance)." in sentence
        assert "instead" not in sentence and "beats" not in sentence


def test_the_headline_admits_defeat_absence_and_too_few_rows() -> None:
    worse = comparison_headline(compared([1.1, 1.2] * 6))
    assert worse.startswith("No plan found within 108.0 MiB beats uniform 3 bits, rank 8, 100.0 MiB")
    assert "no uniform plan to compare" in comparison_headline(compared(uniform=None))
    assert "nothing says whether the difference is chance" in comparison_headline(compared([0.8]))
    assert comparison_headline(compared([1.2])).endswith("(it may be chance).")
    nothing = search(ToyEvaluator(), strategy="random", evaluations=1)
    assert headline(replace(nothing, candidates=(), trials=())) == "No plan has been evaluated with success yet."
    assert "beats" in comparison_headline(compared(failed="diverged: training loss is nan"))


def test_a_change_on_validation_data_may_be_chance_within_two_standard_errors() -> None:
    best = EvaluatedPlan(PLAN, 1.0, 0.1, 9, 1.0)
    near, far = (UniformComparison(9, best, replace(best, plan=UNIFORM, loss=loss)).change for loss in (1.2, 1.4))
    assert near is not None and near.may_be_chance  # the difference's standard error is 0.14
    assert far is not None and not far.may_be_chance
    assert formatting.change_text(far).startswith("−28.6 % (−48.8 to −8.4)")


def test_the_verdict_is_the_metric_if_there_is_one_with_every_size() -> None:
    space, plain = compared(), compared(row_scores={"accuracy": (1.0, 0.0) * 6})
    nothing = search(ToyEvaluator(TWO), strategy="random", evaluations=1)
    assert verdict(nothing, space) == "Test loss 1.432 in 108.0 MiB; uniform 3 bits, rank 8: 1.710 in 100.0 MiB"
    uniform = tuned("uniform", UNIFORM, [1.71] * 12, row_scores={"accuracy": (1.0,) * 3 + (0.0,) * 9})
    sixteen = tuned("16-bit", Plan((16, 16), (8, 8)), [1.2] * 12, 300, row_scores={"accuracy": (1.0,) * 12})
    scored = replace(plain, tunings=(plain.chosen, uniform, sixteen))
    assert verdict(nothing, scored) == (
        "Accuracy 50.0 % in 108.0 MiB; uniform 3 bits, rank 8: 25.0 % in 100.0 MiB; 16-bit LoRA: 100.0 % in 300.0 MiB"
    )


def test_a_uniform_plan_is_the_rival_whoever_proposed_it_and_no_other_plan_is() -> None:
    space = toy_space(3, table=True)
    trials = search(ToyEvaluator(space), strategy="random", evaluations=8).trials
    uniform = [t for t in trials if space.uniform_choice(t.plan) is not None]
    assert 0 < len(uniform) < len(trials)
    best = BestSoFar((space.memory.maximum,), space=space)
    for trial in trials:
        other = "uniform" if trial not in uniform else "someone"
        best.add(replace(trial, proposal=replace(trial.proposal, origin=other)))
    found = best.best(space.memory.maximum, uniform=True)
    assert found is not None and found[1] == min(t.loss for t in uniform)


def test_a_curve_is_read_as_far_as_it_is_whole_and_finite(tmp_path: Path) -> None:
    lines = ('{"step": 10, "loss": NaN, "validation_loss": NaN}', "null", '{"step": 3}', '{"step": 11, "lo')
    write_curve(tmp_path, "1a", 9, end="\n".join(lines))
    curve = read_curve(tmp_path / "tunings" / "1a" / "curve.jsonl", "the plan")
    assert curve.name == "the plan" and curve.validation == ((4, 2.5), (8, 2.5))
    assert curve.loss == tuple((s, 2.0 + 1 / s) for s in range(1, 10))


def test_many_steps_are_means_of_a_few_and_the_mean_stays() -> None:
    points = [(float(i), float(i % 7)) for i in range(700)]
    few = smoothed(points, 70)
    assert len(few) == 70 and few[0] == (pytest.approx(4.5), pytest.approx(sum(i % 7 for i in range(10)) / 10))
    assert sum(y for _, y in few) / 70 == pytest.approx(sum(y for _, y in points) / 700)
