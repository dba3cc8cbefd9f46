"""The parts of a report: colours, layout, words, curves, and what a running search has found."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_runs import evil_space, write_curve
from scipy.stats import binomtest

from qra_search import Group, Linear, Plan, SearchSpace, search
from qra_search.allocate.sensitivities import Sensitivities
from qra_search.report import colors, formatting
from qra_search.report.data import read_curves, smoothed
from qra_search.report.finding import Finding, finding, headline
from qra_search.report.layout import damage_steps, heat_maps, layout
from qra_search.report.progress import BestSoFar
from qra_search.report.terminal.tables import strip
from qra_search.runs.comparison import TestResult
from qra_search.study.candidates import Comparison, EvaluatedPlan
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


def test_a_light_colour_tells_its_name() -> None:
    assert len(set(colors.palette().values())) == len(colors.palette())


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
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("pair", "texts"),
    [((1.43, 1.71), ("1.43", "1.71")), ((1.4312, 1.4349), ("1.431", "1.435")), ((2.0, 2.0), ("2.00", "2.00"))],
)
def test_two_losses_get_the_digits_that_tell_them_apart(pair: tuple[float, float], texts: tuple[str, str]) -> None:
    assert formatting.pair_text(*pair) == texts


def found(**changes: object) -> Finding:
    plan, rival = Plan((2, 4), (8, 8)), Plan((3, 3), (8, 8))
    fields = {"space": toy_space(2, bits=(2, 3, 4), ranks=(8,)), "data": "test", "plan": plan, "loss": 1.43,
              "memory_bytes": 108 << 20, "budget": 108 << 20, "rival": rival, "rival_loss": 1.71,
              "rival_bytes": 100 << 20, "interval": (-0.342, -0.171)}  # fmt: skip
    return Finding(**(fields | changes))  # type: ignore[arg-type]


def test_the_headline_gives_both_losses_the_budget_the_rivals_size_and_the_interval() -> None:
    assert headline(found()) == (
        "Test loss 1.43 instead of 1.71 (uniform 3 bits, rank 8, 100.0 MiB), within 108.0 MiB: "
        "16.4 % lower, 95% interval 10.0 % to 20.0 %."
    )


def test_what_makes_a_finding_worthless_is_said_first() -> None:
    """Both worse than the untuned model, or answers that are empty; not where one of both is better."""
    assert headline(found(untuned_loss=1.2)).startswith("Both models are worse than untuned, whose test loss is 1.200.")
    assert headline(found(untuned_loss=1.2, rival=None, rival_loss=math.nan)).startswith("The tuned model is worse")
    assert headline(found(silent=True)).startswith("The tuned model answers nothing")
    assert headline(found(untuned_loss=1.5)) == headline(found())


@pytest.mark.parametrize(("metrics", "silent"), [({"exact_match": 0.0}, True), ({"choice_loss": 0.7}, False)])
def test_a_choice_is_judged_by_likelihood_so_that_empty_answers_say_nothing_of_it(
    metrics: dict[str, float], silent: bool
) -> None:
    result = search(ToyEvaluator(), strategy="random", evaluations=1)
    plan, empty = result.candidates[0].plan, ({"prompt": "a", "wanted": "b", "before": "c", "after": " "},)
    tested = TestResult("found", plan, 9, (1.0,), metrics, samples=empty)
    said = finding(result, [tested])
    assert said is not None and said.silent is silent
    assert headline(said).startswith("The tuned model answers nothing") is silent


def test_a_difference_whose_interval_holds_zero_is_neither_gain_nor_loss() -> None:
    for loss in (1.70, 1.72):
        said = headline(found(loss=loss, interval=(-0.1, 0.05)))
        assert said.endswith("a difference too small to tell from chance, 95% interval −2.9 % to +5.8 %.")
        assert "instead" not in said and "beats" not in said


def test_a_test_loss_is_not_called_lower_when_nothing_tells_what_chance_is() -> None:
    assert "nothing says whether the difference is chance" in headline(found(interval=None))
    assert "16.4 % lower" in headline(found(interval=None, noise=0.1))


def test_a_gain_that_may_be_chance_is_called_so_in_tables_too() -> None:
    assert formatting.gain_text(0.031, doubtful=True) == "3.1 %, chance"
    assert [formatting.gain_text(g, doubtful=False) for g in (0.031, -0.2, math.nan)] == ["3.1 %", "none", "–"]
    plan, rival = Plan((2,), (4,)), Plan((3,), (4,))
    best, uniform = (EvaluatedPlan(p, loss, 0.1, 9, loss) for p, loss in ((plan, 1.0), (rival, 1.2)))
    assert Comparison(9, best, uniform).doubtful  # the difference's standard error is 0.14
    assert not Comparison(9, best, replace(uniform, loss=1.4)).doubtful


def test_the_headline_admits_noise_and_defeat_and_absence() -> None:
    assert "too small to tell from chance" in headline(found(interval=None, noise=0.2, data="validation"))
    assert "chance" not in headline(found(interval=None, noise=0.1, data="validation"))
    worse = headline(found(loss=1.8, interval=(0.02, 0.2)))
    assert worse.startswith("No plan found within 108.0 MiB beats uniform 3 bits, rank 8, 100.0 MiB")
    assert "no uniform plan to compare" in headline(found(rival=None))
    assert headline(None) == "No plan has been evaluated with success yet."
    assert "beats" in headline(found(loss=math.inf, interval=None))


def test_figures_stay_with_their_units() -> None:
    assert formatting.unbroken("108.0 MiB, 7 %, rank 8 < 3 bits") == "108.0\xa0MiB, 7\xa0%, rank\xa08 < 3\xa0bits"


def test_a_strip_has_the_value_of_every_group_under_its_layer() -> None:
    three = space([("q", 0), ("v", 0), ("q", 1)])
    text = strip(three, heat_maps(three, Plan((2, 4, 8), (4, 4, 4)))[0]).plain
    assert [line.split() for line in text.splitlines()] == [["0"], ["q", "2", "8"], ["v", "4"]]


def test_steps_of_a_ramp_are_written_without_exponents() -> None:
    levels, labels = damage_steps(np.array([0.13, 1.0, 130.0]))
    assert levels[0] == 0 and labels[0].startswith("0.13 to ") and labels[-1].endswith(" to 130")


@pytest.mark.parametrize(("right", "rows"), [(0, 20), (1, 64), (32, 64), (60, 64), (64, 64)])
def test_the_interval_of_a_share_is_wilsons(right: int, rows: int) -> None:
    theirs = binomtest(right, rows).proportion_ci(0.95, method="wilson")
    assert formatting.share_interval(right / rows, rows) == pytest.approx((theirs.low, theirs.high), abs=1e-4)


def test_a_share_has_its_interval_if_its_rows_are_known_and_other_figures_have_none() -> None:
    metrics = {"accuracy": 0.5, "perplexity": 12.3456, "margin": 0.25}
    known = TestResult("found", Plan((2,), (4,)), 1, (1.0,), metrics, scored=64)
    assert [formatting.metric_text(known, name) for name in metrics] == ["50.0 % (38 to 62)", "12.35", "0.25"]
    unknown = TestResult("found", Plan((2,), (4,)), 1, (1.0,), metrics)
    assert formatting.metric_text(unknown, "accuracy") == "50.0 %"


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
    write_curve(tmp_path, "plan-a", 9, end="\n".join(lines))
    write_curve(tmp_path, "empty", 0)
    (curve,) = read_curves(tmp_path)
    assert curve.name == "plan-a" and curve.validation == ((4, 2.5), (8, 2.5))
    assert curve.loss == tuple((s, 2.0 + 1 / s) for s in range(1, 10))
    assert read_curves(tmp_path / "nothing") == ()


def test_many_steps_are_means_of_a_few_and_the_mean_stays() -> None:
    points = [(float(i), float(i % 7)) for i in range(700)]
    few = smoothed(points, 70)
    assert len(few) == 70 and few[0] == (pytest.approx(4.5), pytest.approx(sum(i % 7 for i in range(10)) / 10))
    assert sum(y for _, y in few) / 70 == pytest.approx(sum(y for _, y in points) / 700)
