"""Figures: what they show, and how they are written as SVG."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import pytest
from report_runs import EVIL, add_tunings, make_run

from qra_search.app.evaluator import RateTrial
from qra_search.app.folder import Snapshot
from qra_search.app.rates import foretell_rate
from qra_search.app.report.charts import (
    MIB,
    fit_axis,
    get_palette,
    make_figure,
    plot_front,
    plot_predicted_loss,
    plot_rates,
    plot_tuned,
    put_label,
    to_svg,
    use_chart_style,
)

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = make_run(tmp_path_factory.mktemp("figures") / "a", evaluations=120)
    add_tunings(folder)
    return folder.read()


# -- what is shown -------------------------------------------------------------------------------------
def test_the_front_has_a_mark_for_every_plan_at_its_bytes_and_loss(run: Snapshot) -> None:
    (axes,) = plot_front(run.result, run.plan).axes
    marks = {
        line.get_label(): line.get_xydata().tolist()
        for line in axes.lines
        if not line.get_label().startswith("_")
    }
    (found,) = marks.pop("plan found")
    shown = sorted(tuple(place) for places in marks.values() for place in places)
    wanted = sorted((c.memory_bytes / MIB, c.loss) for c in run.result.candidates)
    assert shown == [pytest.approx(place) for place in wanted]
    best = next(c for c in run.result.candidates if c.plan == run.plan)
    assert found == pytest.approx([best.memory_bytes / MIB, best.loss])
    uniform = sum(run.result.space.uniform_choice(c.plan) is not None for c in run.result.candidates)
    assert len(marks["uniform plans (b bits, r rank)"]) == uniform > 0


def test_predicted_uniform_plans_lie_at_their_bytes_and_none_below_the_plans_of_every_size(
    run: Snapshot,
) -> None:
    space, plan = run.result.space, run.require_plan()
    (axes,) = plot_predicted_loss(run.result, plan).axes
    line, squares, own = (artist.get_xydata() for artist in axes.lines)
    assert own[0][0] == pytest.approx(space.memory_bytes(plan) / MIB)
    least = [space.uniform(level, min(space.uniform_ranks)) for level in space.bits]
    wanted = [space.memory_bytes(plan) / MIB for plan in least if plan is not None]
    assert squares[:, 0].tolist() == pytest.approx(wanted) and len(wanted) > 1
    gaps = [loss - line[line[:, 0] <= size + 1e-9, 1].min() for size, loss in squares]
    assert min(gaps) >= -1e-9 and max(gaps) > 1e-3


@pytest.mark.parametrize("span", [1e-3, 0.1, 30.0, 3e4])
@pytest.mark.parametrize("log", [False, None])
def test_ticks_have_labels_that_differ_and_say_where_they_stand(span: float, log: bool | None) -> None:
    with use_chart_style():
        figure, axes = make_figure("", (380, 320))
        low, high = fit_axis(axes, "y", "loss", [94.98, 94.98 + span, float("nan"), float("inf")], log=log)
        labels = [label.get_text() for label in axes.get_yticklabels()]
        ticks = axes.get_yticks()
    assert low < 94.98 and high > 94.98 + span
    shown = [(t, label) for t, label in zip(ticks, labels, strict=True) if low <= t <= high]
    assert 3 <= len(shown) <= 9 and len({label for _, label in shown}) == len(shown)
    assert [float(label) for _, label in shown] == pytest.approx([t for t, _ in shown], abs=span / 20)
    assert axes.get_title(loc="left").endswith("(log scale)") == (log is None and span > 200)


def test_labels_keep_apart_and_the_last_to_find_no_room_is_left_out() -> None:
    with use_chart_style():
        _, axes = make_figure("", (380, 320))
        taken: list[Any] = []
        for _ in range(3):
            put_label(axes, taken, "one label", (0.5, 0.5), (0, 0), moves=(0, 16))
        assert [text.xyann[1] for text in axes.texts] == [0, -16]
        put_label(axes, taken, "other side", (0.5, 0.5), (4, 0), side="left")
    assert len(axes.texts) == 3


# -- how it is written ---------------------------------------------------------------------------------
def test_a_page_has_its_own_colours_in_a_chart_and_charts_share_no_id(run: Snapshot) -> None:
    text = to_svg(plot_front(run.result, run.plan), theme="page", key="k")
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", text)) <= {
        "none",
        *(f"var(--{name})" for name in get_palette()),
    }
    assert "<dc:date" not in text and EVIL not in text
    assert text == to_svg(plot_front(run.result, run.plan), theme="page", key="k")
    other = to_svg(plot_front(run.result, run.plan), theme="page", key="other")
    assert not set(re.findall(r' id="([^"]+)"', text)) & set(re.findall(r' id="([^"]+)"', other))


def test_for_a_screen_there_is_a_title_and_a_second_colour_for_each(run: Snapshot) -> None:
    figure = plot_front(run.result, run.plan)
    root = ElementTree.fromstring(to_svg(figure))
    assert root.tag == f"{SVG}svg" and root.findtext(f"{SVG}title") == figure.get_label()
    light, dark = (root.findtext(f"{SVG}style") or "").split("@media (prefers-color-scheme:dark)")
    for theme, text in ((False, light), (True, dark)):
        assert all(f"--{name}:{color};" in text for name, color in get_palette(dark=theme).items())


def test_drawing_leaves_the_settings_of_matplotlib_and_pyplot_alone() -> None:
    code = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy()\n"
        "from qra_search.app.report.charts import make_figure, use_chart_style, to_svg\n"
        "with use_chart_style(): figure, axes = make_figure('title', (300, 200))\n"
        "to_svg(figure)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert all(before[name] == matplotlib.rcParams[name] for name in before if name != 'backend')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_was_tuned_and_the_trials_of_rates_have_charts(run: Snapshot) -> None:
    comparison = run.comparison()
    assert comparison is not None
    (axes,) = plot_tuned(comparison).axes
    places = {tuple(line.get_xydata()[0]) for line in axes.lines if len(line.get_xydata()) == 1}
    tuned = [t for t in comparison.tunings if t.role in ("plan", "uniform")]
    wanted = {(t.memory_bytes / MIB, 100 * t.metrics["exact_match"]) for t in tuned}
    assert {tuple(map(float, place)) for place in places} >= wanted
    trials = [RateTrial(rate, 100, 100, loss) for rate, loss in ((1e-3, 0.5), (2e-3, 0.4), (4e-3, 0.6))]
    foretold = foretell_rate(trials, 600)
    (axes,) = plot_rates(foretold).axes
    assert f"{foretold.rate:g} for 600 steps" in {note.get_text() for note in axes.texts}
    assert axes.lines[-1].get_xydata().tolist() == [[1, 0.5], [2, 0.4], [4, 0.6]]
