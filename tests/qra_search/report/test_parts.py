"""The parts of a report: colours, layout, words, curves, and what a running search has found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import add_tunings, make_run, write_curve

from qra_search import Group, Level, Linear, Plan, SearchSpace, search
from qra_search.allocate.sensitivities import Sensitivities
from qra_search.allocate.solve import Allocation
from qra_search.evaluation.tuning_record import TuningRecord
from qra_search.report import colors, formatting
from qra_search.report.data import CURVE_POINTS, RunData, read_curve, smooth_curve
from qra_search.report.figures.charts import plot_tunings
from qra_search.report.finding import summarize_comparison, summarize_run, write_verdict
from qra_search.report.layout import arrange_groups, compute_damage_steps, make_heat_maps
from qra_search.report.live import BestSoFar
from qra_search.report.tables import make_allocation_table, make_tuned_table
from qra_search.report.terminal import make_strip
from qra_search.runs.comparison import Comparison, Role, TunedPlan
from qra_search.space.memory import format_bytes
from qra_search.study.candidates import EvaluatedPlan, LossChange, UniformComparison
from qra_search.study.result import SearchResult
from qra_search.testing.scenarios import ToyEvaluator, make_toy_space


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
        assert len(set(colors.make_ramp(name, steps, dark=dark))) == steps
    first, *_, last = (colors.choose_text_color(color) for color in colors.make_ramp(name, 6, dark=dark))
    assert (first, last) == ((colors.PAPER, colors.INK) if dark else (colors.INK, colors.PAPER))


def test_groups_lie_by_kind_and_layer() -> None:
    grid = arrange_groups(space([("q", 0), ("v", 0), ("q", 1), ("v", 2)]))
    assert grid.rows == ("q", "v")
    assert grid.columns == ("0", "1", "2")
    assert grid.cells == ((0, 2, None), (1, None, 3))


@pytest.mark.parametrize("places", [[("q", None)] * 40, [("q", 0)] * 40])
def test_groups_that_say_no_place_of_their_own_lie_in_order(places: list[tuple[str, int | None]]) -> None:
    grid = arrange_groups(space(places))
    assert [g for row in grid.cells for g in row if g is not None] == list(range(40))
    assert all(len(row) == len(grid.columns) for row in grid.cells)


def test_the_steps_of_a_ramp_hold_their_values() -> None:
    values = np.array([0.0, 0.001, 0.01, 0.1, 1.0])
    levels, labels = compute_damage_steps(values)
    assert levels.tolist() == sorted(levels.tolist())
    assert levels[0] == 0 and levels[-1] == len(labels) - 1
    assert compute_damage_steps(np.zeros(3))[0].tolist() == [0, 0, 0]
    assert compute_damage_steps(np.full(3, 0.5))[1] == ["0.5"]
    _, labels = compute_damage_steps(np.array([0.13, 1.0, 130.0]))
    assert labels[0].startswith("0.13 to ") and labels[-1].endswith(" to 130"), "without exponents"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12 ms"), (3.21, "3.2 s"), (41.4, "41 s"), (372, "6 min 12 s"), (7500, "2 h 05 min"),
     (math.nan, "unknown")],
)  # fmt: skip
def test_durations_are_as_people_write_them(seconds: float, text: str) -> None:
    assert formatting.format_time(seconds) == text


@pytest.mark.parametrize("pair", [("1.43", "1.71"), ("1.431", "1.435")])
def test_two_losses_get_the_digits_that_tell_them_apart(pair: tuple[str, str]) -> None:
    assert formatting.format_pair(float(pair[0]) + 2e-4, float(pair[1]) - 1e-4) == pair


TWO = make_toy_space(2, bits=(2, 3, 4), ranks=(8,))
PLAN, UNIFORM = Plan((2, 4), (8, 8)), Plan((3, 3), (8, 8))
RATIOS = (0.7, 0.8, 0.9, 0.95) * 3


def tuned(role: Role, plan: Plan, nats: Sequence[float], memory_mib: int = 100, **fields: Any) -> TunedPlan:
    record = TuningRecord(plan, 0, 9, memory_mib << 20, row_nats=tuple(nats), row_tokens=(1,) * len(nats), **fields)
    return TunedPlan.from_seeds(role, (record,))


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
    sentence = summarize_comparison(compared())
    assert sentence.startswith(
        "Test loss 1.43 instead of 1.71 (uniform 3 bits, rank 8, 100.0 MiB, 8.0 MiB smaller), within 108.0 MiB: −16.3%"
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
    assert "Exact match 60.0% instead of 60.0%." in summarize_comparison(Comparison(TWO, 108 << 20, tuple(both)))


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
    assert summarize_comparison(flattered).startswith("One answer to every row, the commonest, scores 30.0%")
    unscored = compared(commonest_scores={"exact_match": 0.3})  # of scores that are not finite, or of one seed alone
    assert "commonest" not in summarize_comparison(unscored)
    learnt = compared(row_scores=right, commonest_scores={"exact_match": 0.01})
    assert "commonest" not in summarize_comparison(learnt)
    judged = compared(samples=empty, row_scores={"choice_loss": (0.7,)})
    assert not summarize_comparison(judged).startswith("The tuned"), "a choice is judged by its likelihood"


def test_the_headline_says_whether_choosing_by_layer_paid() -> None:
    shuffled = Plan((4, 2), (8, 8))
    for ratio, text in (
        (1.0, "The plan shuffled over linears has 1.71: choosing by layer brings −16"),
        (0.7, "The plan shuffled over linears has 1.20: choosing by layer does not pay here, +19"),
    ):
        comparison = compared()
        control = tuned("shuffled", shuffled, [1.71 * ratio] * len(RATIOS), 108)
        assert text in summarize_comparison(replace(comparison, tunings=(*comparison.tunings, control)))
    few = compared(ratios=(0.8,), uniform=None)
    control = tuned("shuffled", shuffled, [1.71], 108)
    assert "nothing says whether" in summarize_comparison(replace(few, tunings=(*few.tunings, control)))


def test_metrics_that_score_the_same_rows_share_a_note() -> None:
    scores = {"slot_f1": (0.0, 1.0) * 16, "exact_match": (1.0, 0.0) * 16, "f1": (0.0, 1.0) * 12}
    notes = make_tuned_table(compared(uniform=None, row_scores=scores)).notes
    assert [note for note in notes if ": on " in note] == [
        "Slot f1, exact match: on 32 test rows.", "F1: on 24 test rows.",
    ]  # fmt: skip


def test_a_difference_whose_interval_holds_zero_is_neither_gain_nor_loss() -> None:
    for shift in (-0.05, 0.05):
        sentence = summarize_comparison(compared([1 + shift + wide for wide in (-0.4, 0.4) * 6]))
        assert "a difference too small to tell from chance, " in sentence and sentence.count("chance") == 1
        assert "instead" not in sentence and "beats" not in sentence


def test_the_headline_admits_defeat_absence_and_too_few_rows() -> None:
    worse = summarize_comparison(compared([1.1, 1.2] * 6))
    assert worse.startswith("No plan found within 108.0 MiB beats uniform 3 bits, rank 8, 100.0 MiB")
    assert "no uniform plan was tuned alike" in summarize_comparison(compared(uniform=None))
    assert "nothing says whether the difference is chance" in summarize_comparison(compared([0.8]))
    assert summarize_comparison(compared([1.2])).endswith("(it may be chance).")
    nothing = search(ToyEvaluator(), strategy="random", evaluations=1)
    assert summarize_run(replace(nothing, candidates=(), trials=())) == "No plan has been evaluated with success yet."
    assert "beats" in summarize_comparison(compared(failed="diverged: training loss is nan"))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (0.3, "0.600 nats closer to 16 bits than the plan."),
        (0.01, "0.020 nats closer to 16 bits than the plan, too small to tell from chance."),
    ],
)
def test_the_headline_names_the_next_uniform_plan_with_its_predicted_difference(damage: float, text: str) -> None:
    """A step from 3 to 4 bits takes away this damage of each of two groups; no other plan is as small as 3 bits."""
    three, four = (TWO.memory_bytes(Plan((b, b), (8, 8))) for b in (3, 4))
    by_bits = Sensitivities(np.array([[9.0, damage, 0.0]] * 2), np.zeros((2, 1)), repair=0.0)
    result = SearchResult(TWO, (), by_bits, (three,), 0, strategy="qra", allocations={})
    size = format_bytes(four - three)
    more = f" The next better uniform plan, uniform 4 bits, rank 8, takes {size} more than the budget"
    assert f"{more}: before tuning it is predicted {text} Nothing was tuned yet." in summarize_run(result)
    mixed = replace(result, memory_budgets=((three + four) // 2,))
    is_certain = damage > 0.1
    lead = f"{damage:.3f} nats closer to 16 bits than"
    assert f"): before tuning it is predicted {lead} uniform 3 bits, rank 8" in summarize_run(mixed)
    assert (f"before tuning predicted {lead} the best uniform plan" in write_verdict(mixed)) is is_certain
    tuned_in_three = replace(compared(uniform=None), budget_bytes=three)
    assert summarize_comparison(tuned_in_three).endswith(f"{more}.")
    printed = " ".join(str(replace(tuned_in_three, sensitivities=by_bits)).split())
    assert f"{more}: before tuning it is predicted 9.000 nats closer to 16 bits than the plan." in printed, (
        "whose 2 bits cost 9"
    )
    assert "next better" not in summarize_comparison(compared()), "all uniform plans fit"
    worse = replace(by_bits, bits_damage=by_bits.bits_damage * [1, 1, 0] + [0, 0, 1])
    assert "next better" not in summarize_run(replace(result, sensitivities=worse, allocations={}))


def test_a_change_on_validation_data_may_be_chance_within_two_standard_errors() -> None:
    best = EvaluatedPlan(PLAN, 1.0, 0.1, 9, 1.0)
    near, far = (UniformComparison(9, best, replace(best, plan=UNIFORM, loss=loss)).change for loss in (1.2, 1.4))
    assert near is not None and near.may_be_chance  # the difference's standard error is 0.14
    assert far is not None and not far.may_be_chance
    assert formatting.format_change(far).startswith("−28.6% (−48.8 to −8.4)")


@pytest.mark.parametrize(
    ("share", "text"),
    [(-4e-4, "−0.04% (−0.05 to −0.03)"), (3e-6, "+0.0003% (−0.0097 to +0.0103)"), (0.0, "+0.0% (−0.0 to +0.0)")],
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
    assert row[1:3] == (format_bytes(allocation.memory_bytes), "0.400")


def test_the_verdict_is_a_line_of_the_plans_figure_and_that_of_16_bit_lora() -> None:
    nothing = search(ToyEvaluator(TWO), strategy="random", evaluations=1)
    assert write_verdict(nothing, compared()) == "Test loss 1.432 in 108.0 MiB"
    assert write_verdict(nothing, compared(untuned=1.2)).startswith("Both models are worse than untuned")
    assert write_verdict(nothing).endswith("KiB; it was not evaluated"), (
        "predicted to be better than what was evaluated"
    )
    sixteen = tuned(
        "16-bit", Plan((16, 16), (8, 8)), [1.2] * 12, 300, row_scores={"accuracy": (1.0,) * 12, "f1": (9.0,)}
    )
    for scores, line in (
        ({"accuracy": (1.0, 0.0) * 6}, "50.0% right in 108.0 MiB; 16-bit LoRA: 100.0% in 300.0 MiB"),
        ({"f1": (7.0,)}, "F1 7 in 108.0 MiB; 16-bit LoRA: 9 in 300.0 MiB"),
    ):
        comparison = compared(uniform=None, row_scores=scores)
        assert write_verdict(nothing, replace(comparison, tunings=(*comparison.tunings, sixteen))) == line


def test_a_uniform_plan_is_the_rival_whoever_proposed_it_and_no_other_plan_is() -> None:
    space = make_toy_space(3, table=True)
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
    assert curve.loss == tuple((s, 2.0 + 1 / s) for s in range(1, 10)), "too short to smooth"


def test_a_smoothed_curve_has_no_spike_and_few_points() -> None:
    spiked = [(float(i), 9.0 if i == 40 else 1.0) for i in range(72)]
    curve = smooth_curve(spiked)
    assert curve[0] == (0.0, 1.0) and max(y for _, y in curve) == pytest.approx(1 + 8 / 13), "a sixth of 72, and itself"
    assert len(smooth_curve([(float(i), 1.0) for i in range(700)])) <= CURVE_POINTS


def test_tunings_go_by_their_roles_in_legends(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", evaluations=8)
    add_tunings(run, seeds=1)
    for record in run.records():
        write_curve(run.path, record.id, 6)
    write_curve(run.path, "5ead", 3)
    names = {curve.name for curve in RunData.read(run).curves}
    assert names == {"plan", "uniform 2 bits, rank 4", "uniform 3 bits, rank 4", "running: 5ead"}
    other = replace(run.records()[-1], settings={"learning_rate": 0.1})
    run.tuning(other.id).path.mkdir()
    run.tuning(other.id).write(other)
    write_curve(run.path, other.id, 6)
    again = [curve.name for curve in RunData.read(run).curves]
    assert len(set(again)) == 5 and sum(name.startswith("uniform 3 bits, rank 4 (") for name in again) == 2
    (axes,) = plot_tunings(RunData.read(run)).axes
    lines, marks = (
        [line.zorder for line in axes.lines if (line.get_linestyle() == "None") is is_mark] for is_mark in (False, True)
    )
    assert min(marks) > max(lines), "marks lie on the lines"


def test_a_level_of_half_a_bit_reads_as_its_width_and_files_keep_its_name() -> None:
    half = make_toy_space(2, bits=(1, Level("trellis-1.5", 1.5, "trellis"), Level("nf4", 4)), ranks=(8,))
    plan = Plan(("trellis-1.5", "trellis-1.5"), (8, 8))
    assert formatting.format_plan(plan, half) == "uniform 1.5 bits, rank 8"
    assert formatting.format_level_counts(Plan((1, "trellis-1.5"), (8, 8)), half) == "1 at 1 bit, 1 at 1.5 bits"
    bits = make_heat_maps(half, Plan((1, "trellis-1.5"), (8, 8)))[0]
    assert bits.labels == ["1", "1.5"] and bits.legend == ["1 bit", "1.5 bits", "nf4 (4 bits)"]
    assert plan.to_dict()["bits"] == ["trellis-1.5"] * 2


def test_a_strip_of_equal_numbers_is_a_sentence_whatever_the_embeddings_have() -> None:
    known = make_toy_space(3, table=True)
    table = next(g for g, group in enumerate(known.groups) if group.is_embedding)
    bits = tuple(8 if g == table else 3 for g in range(len(known)))
    plan = Plan(bits, tuple(0 if g == table else 8 for g in range(len(known))))
    sentences = [heat.shared_sentence for heat in make_heat_maps(known, plan)]
    assert sentences == ["3 in all linears, 8 in the embeddings", "8 in all linears"]
    other = next(g for g in range(len(known)) if g != table)
    assert make_heat_maps(known, replace(plan, bits=(*bits[:other], 2, *bits[other + 1 :])))[0].shared_sentence is None


@pytest.mark.parametrize("room", [80, 100])
def test_a_strip_numbers_every_fifth_layer_names_the_embeddings_and_fits_the_line(room: int) -> None:
    known = make_toy_space(30, table=True)
    plan = Plan((2, *[3] * 29, 16), (16, *[8] * 29, 0))
    for heat in make_heat_maps(known, plan):
        lines = make_strip(known, heat, room).plain.splitlines()
        heads = [name for line in lines if line.startswith(" ") for name in line.split()]
        assert max(map(len, lines)) <= room
        assert set(heads) >= {"0", "5", "10", "15", "20", "25", "emb"} and "30" not in heads


def test_a_mean_rank_has_a_decimal_only_if_it_is_not_whole() -> None:
    known = make_toy_space(2)
    names = [formatting.format_plan(Plan((2, 3), ranks), known) for ranks in ((4, 4), (4, 8), (8, 16))]
    assert names == [f"mixed, 2.50 bits, rank {rank}" for rank in (4, 6, 12)]
    assert formatting.format_plan(Plan((2, 2, 3), (4, 4, 8)), make_toy_space(3)).endswith("rank 5.3")


@pytest.mark.parametrize(
    ("scale", "unit", "cells"),
    [(1.0, "nats", ["0.0", "0.4", "130"]), (1e-3, "thousandths of a nat", ["0.0", "0.4", "130"])],
)
def test_sensitivities_have_the_unit_in_which_most_are_a_tenth_or_more(
    scale: float, unit: str, cells: list[str]
) -> None:
    known = make_toy_space(40, bits=(2, 3), ranks=(8,))
    damage = np.full((40, 2), 0.42) * scale
    damage[0], damage[-1], damage[5:12] = 1e-5 * scale, 130 * scale, 0
    sensitivity = make_heat_maps(known, known.uniform(2, 8), Sensitivities(damage, np.zeros((40, 1))))[-1]
    assert sensitivity.remark.endswith(f"in {unit}")
    assert [sensitivity.labels[at] for at in (0, 1, -1)] == cells


def test_a_plan_with_nearly_every_rank_at_the_least_says_that_ranks_were_not_told_apart() -> None:
    chosen = make_toy_space(4)
    for rank, is_said in ((chosen.ranks[0], True), (chosen.ranks[1], False)):
        plan = chosen.uniform(chosen.bits[1], rank)
        assert plan is not None
        allocation = Allocation(plan, 1 << 20, chosen.memory_bytes(plan), 0.1, ())
        result = SearchResult(chosen, (), None, (), 0, strategy="qra", allocations={})
        notes = " ".join(make_allocation_table(allocation, result).notes)
        assert (f"Nearly all ranks are {rank}" in notes) == is_said
