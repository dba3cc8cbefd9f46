"""The parts of a report: colours, layout, words and tables."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from report_runs import make_run

from qra_search import Group, Level, Linear, Plan, SearchResult, SearchSpace
from qra_search.app.report import charts, formatting
from qra_search.app.report.page import compute_damage_steps, make_heat_maps
from qra_search.app.report.tables import (
    TextTable,
    arrange_groups,
    make_plan_table,
    print_to_text,
    render_result,
)
from qra_search.schemas import Sensitivities
from qra_search.testing.scenarios import make_toy_space


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
@pytest.mark.parametrize("name", charts.COLOR_RAMPS)
def test_a_ramp_has_as_many_colours_as_steps_and_text_stands_out_from_its_ends(name: str, dark: bool) -> None:
    for steps in range(1, 9):
        assert len(set(charts.make_ramp(name, steps, dark=dark))) == steps
    first, *_, last = (charts.choose_text_color(color) for color in charts.make_ramp(name, 6, dark=dark))
    assert (first, last) == ((charts.PAPER, charts.INK) if dark else (charts.INK, charts.PAPER))


def test_groups_lie_by_kind_and_layer() -> None:
    grid = arrange_groups(space([("q", 0), ("v", 0), ("q", 1), ("v", 2)]))
    assert grid is not None and grid.rows == ("q", "v")
    assert grid.columns == ("0", "1", "2")
    assert grid.cells == ((0, 2, None), (1, None, 3))


@pytest.mark.parametrize("places", [[("q", None)] * 4, [("q", 0)] * 4])
def test_groups_that_say_no_place_of_their_own_have_no_grid(places: list[tuple[str, int | None]]) -> None:
    assert arrange_groups(space(places)) is None


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


def test_a_mean_rank_has_a_decimal_only_if_it_is_not_whole() -> None:
    known = make_toy_space(2)
    names = [formatting.format_plan(Plan((2, 3), ranks), known) for ranks in ((4, 4), (4, 8), (8, 16))]
    assert names == [f"mixed, 2.50 bits, rank {rank}" for rank in (4, 6, 12)]
    assert formatting.format_plan(Plan((2, 2, 3), (4, 4, 8)), make_toy_space(3)).endswith("rank 5.3")


def test_damage_is_in_thousandths_of_a_nat_of_a_group_alone_at_its_fewest_bits() -> None:
    known = make_toy_space(3, bits=(2, 3), ranks=(8,))
    damage = np.array([[1e-4, 0.0], [0.0042, 0.001], [0.13, 0.1]])
    heat = make_heat_maps(known, known.uniform(2, 8), Sensitivities(damage, np.zeros((3, 1))))[-1]
    assert heat.remark.endswith("alone at 2 bits, in thousandths of a nat")
    assert list(heat.labels) == ["0.1", "4.2", "130"]


def test_a_plan_in_the_terminal_has_a_row_for_each_layer_and_one_for_the_embeddings() -> None:
    known = make_toy_space(3, table=True)
    table = make_plan_table(Plan((2, 3, 3, 16), (16, 8, 4, 0)), known)
    cells = {row[0]: [cell for cell in row[1:] if cell] for row in table.rows}
    assert cells == {"0": ["2 r16"], "1": ["3 r8"], "2": ["3 r4"], "emb": ["16"]}
    unnamed = make_plan_table(Plan((2, 3), (8, 4)), space([("q", None), ("v", None)]))
    assert unnamed.rows == [("g0", "2 r8"), ("g1", "3 r4")]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return make_run(tmp_path_factory.mktemp("reprs") / "a").read().result


def test_reprs_are_one_line_that_says_what_it_is(result: SearchResult) -> None:
    best = result.best()
    assert best is not None
    assert (
        repr(result) == f"SearchResult({len(result.trials)} trials by guessing, front of {len(result.front)})"
    )
    assert repr(result.space).startswith("SearchSpace(6 groups, bits 2, 3, 4, 8, ranks 0, 4, 8, ")
    assert "\n" not in repr(result.space) and str(result.space) == repr(result.space)
    assert eval(repr(best.plan), {"Plan": Plan}) == best.plan  # noqa: S307 - our own repr


def test_names_are_no_markup() -> None:
    assert "f1[/macro]" in str(TextTable("", ("f1[/macro]",), [("1",)]))


def test_a_result_of_a_plan_alone_says_that_nothing_was_tuned(tmp_path: Path) -> None:
    empty = make_run(tmp_path / "e", evaluations=None).read().result
    assert empty.candidates == ()
    text = print_to_text(render_result(empty))
    assert "the sensitivities choose" in text and "Nothing was tuned yet" in text
    assert repr(empty) == "SearchResult(0 trials by qra, front of 0)"
