"""The parts of a report: scales and ticks, colours, layout, words, strips."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qra_search import Group, Linear, Plan, SearchSpace
from qra_search.contracts.scenarios import toy_space
from qra_search.report import colors, words
from qra_search.report.html import charts, svg
from qra_search.report.html.heatmap import damage_steps
from qra_search.report.html.svg import Scale
from qra_search.report.layout import layout
from qra_search.report.terminal.strips import strip


def space(places: list[tuple[str, int | None]]) -> SearchSpace:
    return SearchSpace(
        groups=tuple(
            Group(name=f"g{i}", linears=(Linear(name=f"g{i}", out_features=8, in_features=64),), kind=k, depth=d)
            for i, (k, d) in enumerate(places)
        )
    )


@given(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=30), st.booleans())
def test_a_scale_puts_every_value_between_its_ends_in_their_order(values: list[float], log: bool) -> None:
    scale = Scale.over(values, (10.0, 110.0), log=log)
    places = [scale(v) for v in sorted(values)]
    assert all(10 <= p <= 110 for p in places)
    assert places == sorted(places)
    room = 1e-9 * (scale.high - scale.low)
    assert all(scale.low - room <= t <= scale.high + room for t in scale.ticks(6))


def test_a_log_scale_puts_the_geometric_mean_in_the_middle() -> None:
    scale = Scale(1.0, 100.0, 0.0, 1.0, log=True)
    assert scale(10.0) == pytest.approx(0.5)
    assert scale.ticks(9) == [1, 2, 5, 10, 20, 50, 100]


@pytest.mark.parametrize(("least", "step"), [(0.03, 0.05), (1, 1), (1.2, 2), (2.1, 2.5), (3, 5), (6, 10), (270, 500)])
def test_steps_between_ticks_are_round(least: float, step: float) -> None:
    assert svg.nice_step(least) == pytest.approx(step)


@pytest.mark.parametrize("span", [1e-3, 0.04, 0.1, 1.0, 30.0])
def test_ticks_have_labels_that_differ_and_say_where_they_stand(span: float) -> None:
    ticks = Scale.over([94.98, 94.98 + span], (0.0, 300.0), log=False).ticks(6)
    labels = svg.tick_labels(ticks)
    assert len(ticks) >= 3 and len(set(labels)) == len(ticks)
    assert [float(label) for label in labels] == pytest.approx(ticks, abs=span / 20)


def test_labels_keep_apart_and_the_last_to_find_no_room_is_left_out() -> None:
    labels = svg.Labels()
    put = [labels.put(100, 50, "one label", left=False, moves=[0, 16]) for _ in range(3)]
    assert [re.search(r' y="(\d+)"', text)[1] if text else "" for text in put] == ["50", "66", ""]  # type: ignore[index]
    assert labels.put(96, 50, "other side", left=True, moves=[0]) != ""


def test_outliers_are_left_out_of_a_scale_only_where_they_take_most_of_it() -> None:
    near = [1.0 + i / 100 for i in range(30)]
    assert svg.clipped([*near, 50.0]) == near
    assert svg.clipped([*near, 1.4]) == [*near, 1.4]
    assert 50.0 in svg.clipped([*near, 50.0], needed=[50.0])
    assert svg.clipped([1.0, 50.0]) == [1.0, 50.0]


@pytest.mark.parametrize("name", colors.RAMPS)
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("steps", range(1, 9))
def test_text_on_every_colour_of_a_ramp_has_aa_contrast(name: str, dark: bool, steps: int) -> None:
    ramp = colors.ramp(name, steps, dark=dark)
    assert len(set(ramp)) == steps
    assert all(colors.contrast(colors.text_on(c), c) >= 4.5 for c in ramp)


@pytest.mark.parametrize("name", colors.RAMPS)
@pytest.mark.parametrize("dark", [False, True])
def test_a_ramp_is_told_apart_by_lightness_alone(name: str, dark: bool) -> None:
    light = [colors._luminance(c) for c in colors.ramp(name, 6, dark=dark)]
    assert light == sorted(light, reverse=not dark)
    assert all(
        colors.contrast(a, b) > 1.2
        for a, b in zip(*(colors.ramp(name, 6, dark=dark)[i:] for i in (0, 1)), strict=False)
    )


def test_contrast_is_that_of_wcag() -> None:
    assert colors.contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert colors.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("pair", [("#faf9f6", colors.ORIGINS), ("#121417", colors.ORIGINS_DARK)])
def test_marks_have_three_to_one_contrast_with_the_page(pair: tuple[str, tuple[str, ...]]) -> None:
    paper, marks = pair
    assert all(colors.contrast(mark, paper) >= 3.0 for mark in marks)


def test_the_colours_of_the_style_sheet_have_aa_contrast_in_both_themes() -> None:
    import re
    from importlib import resources

    css = resources.files("qra_search.report").joinpath("page.css").read_text()
    themes = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    assert len(themes) == 2
    for theme in themes:
        value = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", theme))
        for paper in ("paper", "surface"):
            for ink in ("ink", "soft", "found"):
                assert colors.contrast(value[ink], value[paper]) >= 4.5, (ink, paper)
            for shape in ("best", "uniform"):
                assert colors.contrast(value[shape], value[paper]) >= 3.0, (shape, paper)
        for ink in ("ink", "soft", "found"):
            assert colors.contrast(value[ink], value["found-soft"]) >= 4.5, ink
        assert colors.contrast(value["ink"], value["code"]) >= 4.5


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


def test_the_steps_of_a_ramp_hold_their_values() -> None:
    values = np.array([0.0, 0.001, 0.01, 0.1, 1.0])
    levels, labels = damage_steps(values)
    assert levels.tolist() == sorted(levels.tolist())
    assert levels[0] == 0 and levels[-1] == len(labels) - 1
    assert damage_steps(np.zeros(3))[0].tolist() == [0, 0, 0]
    assert damage_steps(np.full(3, 0.5))[1] == ["0.5"]


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
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("pair", "texts"),
    [((1.43, 1.71), ("1.43", "1.71")), ((1.4312, 1.4349), ("1.431", "1.435")), ((2.0, 2.0), ("2.00", "2.00"))],
)
def test_two_losses_get_the_digits_that_tell_them_apart(pair: tuple[float, float], texts: tuple[str, str]) -> None:
    assert words.pair_text(*pair) == texts


def finding(**changes: object) -> words.Finding:
    plan, rival = Plan((2, 4), (8, 8)), Plan((3, 3), (8, 8))
    fields = {"space": toy_space(2, bits=(2, 3, 4), ranks=(8,)), "data": "test", "plan": plan, "loss": 1.43,
              "memory_bytes": 108 << 20, "budget": 108 << 20, "rival": rival, "rival_loss": 1.71,
              "rival_bytes": 1}  # fmt: skip
    return words.Finding(**(fields | changes))  # type: ignore[arg-type]


def test_the_headline_gives_both_losses_and_the_size() -> None:
    assert words.headline(finding()) == "Test loss 1.43 instead of 1.71 (uniform 3 bits, rank 8) at the same 108.0 MiB."


def test_the_headline_admits_noise_and_defeat_and_absence() -> None:
    assert "within the noise" in words.headline(finding(noise=0.2))
    assert "within the noise" not in words.headline(finding(noise=0.1))
    assert words.headline(finding(loss=1.8)).startswith("No plan found within 108.0 MiB beats uniform 3 bits, rank 8")
    assert "no uniform plan to compare" in words.headline(finding(rival=None))
    assert words.headline(None) == "No plan has been evaluated with success yet."
    assert "beats" in words.headline(finding(loss=math.inf))


def test_figures_stay_with_their_units() -> None:
    assert svg.prose("108.0 MiB, 7 %, rank 8 < 3 bits") == "108.0&nbsp;MiB, 7&nbsp;%, rank&nbsp;8 &lt; 3&nbsp;bits"


def test_rank_correlation_counts_ties_at_their_mean() -> None:
    from scipy.stats import rankdata

    values = np.array([3.0, 1.0, 3.0, 2.0, 3.0, 0.5])
    assert charts._ranks(values).tolist() == (rankdata(values) - 1).tolist()


def test_a_strip_has_the_value_of_every_group_under_its_layer() -> None:
    text = strip(space([("q", 0), ("v", 0), ("q", 1)]), [2, 4, 8], (2, 3, 4, 8)).plain
    assert [line.split() for line in text.splitlines()] == [["0"], ["q", "2", "8"], ["v", "4"]]
