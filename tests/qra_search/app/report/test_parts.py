"""The parts of a report: colours, layout, words, curves, and what a running search has found."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_runs import add_tunings, make_run, write_curve

from qra_search import Group, Level, Linear, Plan, SearchSpace, search
from qra_search.allocate.solve import Allocation
from qra_search.app.report import colors, formatting
from qra_search.app.report.data import CURVE_POINTS, RunData, read_curve, smooth_curve
from qra_search.app.report.figures.charts import plot_tunings
from qra_search.app.report.layout import arrange_groups, compute_damage_steps, make_heat_maps
from qra_search.app.report.live import BestSoFar
from qra_search.app.report.tables import make_allocation_table
from qra_search.app.report.terminal import make_strip
from qra_search.schemas import Sensitivities
from qra_search.study.result import SearchResult
from qra_search.testing.scenarios import ToyEvaluator, make_toy_space


def space(places: list[tuple[str, int | None]]) -> SearchSpace:
    return SearchSpace(
        groups=tuple(
            Group(
                name=f"g{i}", linears=(Linear(name=f"g{i}", out_features=8, in_features=64),), kind=k, depth=d
            )
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
    [
        (0.0123, "12 ms"),
        (3.21, "3.2 s"),
        (41.4, "41 s"),
        (372, "6 min 12 s"),
        (7500, "2 h 05 min"),
        (math.nan, "unknown"),
    ],
)
def test_durations_are_as_people_write_them(seconds: float, text: str) -> None:
    assert formatting.format_time(seconds) == text


@pytest.mark.parametrize("pair", [("1.43", "1.71"), ("1.431", "1.435")])
def test_two_losses_get_the_digits_that_tell_them_apart(pair: tuple[str, str]) -> None:
    assert formatting.format_pair(float(pair[0]) + 2e-4, float(pair[1]) - 1e-4) == pair


def test_a_uniform_plan_is_the_rival_whoever_proposed_it_and_no_other_plan_is() -> None:
    space = make_toy_space(3, table=True)
    trials = search(ToyEvaluator(space), strategy="random", evaluations=8).trials
    uniform = [t for t in trials if space.uniform_choice(t.plan) is not None]
    assert 0 < len(uniform) < len(trials)
    best = BestSoFar((space.memory.maximum,), space=space)
    for trial in trials:
        other = "uniform" if trial not in uniform else "someone"
        best.add(replace(trial, proposal=replace(trial.proposal, origin=other)))
    found = best.find_lowest_loss(space.memory.maximum, uniform=True)
    assert found == min(t.loss for t in uniform)


def test_a_curve_is_read_as_far_as_it_is_whole_and_finite(tmp_path: Path) -> None:
    lines = ('{"step": 10, "loss": NaN, "validation_loss": NaN}', "null", '{"step": 3}', '{"step": 11, "lo')
    write_curve(tmp_path, "1a", 9, end="\n".join(lines))
    curve = read_curve(tmp_path / "tunings" / "1a" / "curve.jsonl", "the plan")
    assert curve.name == "the plan" and curve.validation == ((4, 2.5), (8, 2.5))
    assert curve.loss == tuple((s, 2.0 + 1 / s) for s in range(1, 10)), "too short to smooth"


def test_a_smoothed_curve_has_no_spike_and_few_points() -> None:
    spiked = [(float(i), 9.0 if i == 40 else 1.0) for i in range(72)]
    curve = smooth_curve(spiked)
    assert curve[0] == (0.0, 1.0) and max(y for _, y in curve) == pytest.approx(1 + 8 / 13), (
        "a sixth of 72, and itself"
    )
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
        [line.zorder for line in axes.lines if (line.get_linestyle() == "None") is is_mark]
        for is_mark in (False, True)
    )
    assert min(marks) > max(lines), "marks lie on the lines"


def test_a_level_of_half_a_bit_reads_as_its_width_and_files_keep_its_name() -> None:
    half = make_toy_space(2, bits=(1, Level("trellis-1.5", 1.5, "trellis"), Level("nf4", 4)), ranks=(8,))
    plan = Plan(("trellis-1.5", "trellis-1.5"), (8, 8))
    assert formatting.format_plan(plan, half) == "uniform 1.5 bits, rank 8"
    assert (
        formatting.format_level_counts(Plan((1, "trellis-1.5"), (8, 8)), half) == "1 at 1 bit, 1 at 1.5 bits"
    )
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
    assert (
        make_heat_maps(known, replace(plan, bits=(*bits[:other], 2, *bits[other + 1 :])))[0].shared_sentence
        is None
    )


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
