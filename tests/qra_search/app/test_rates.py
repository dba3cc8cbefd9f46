"""Learning rates foretold from trials, against losses whose best rate is known by a formula."""

from __future__ import annotations

import math

import pytest

from qra_search.app.evaluator import RateTrial
from qra_search.app.rates import LAW_SLOPE, foretell_rate, propose_next_trial


def make_trials(
    steps: int, at_600: float, *, slope: float = LAW_SLOPE, highest: float = math.inf
) -> list[RateTrial]:
    """The trials that are asked for, of a model with this best rate, which diverges above another."""
    trials: list[RateTrial] = []
    while (chosen := propose_next_trial(trials, steps)) is not None:
        rate, length = chosen
        off = math.log2(rate / at_600) - slope * math.log2(length / 600)
        loss = math.inf if rate > highest else math.exp(0.1 * off**2)
        trials.append(RateTrial(rate, length, length, loss))
        assert len(trials) < 30
    return trials


@pytest.mark.parametrize("at_600", [5e-4, 1e-3, 2.3e-3, 6e-3])
@pytest.mark.parametrize("steps", [300, 600, 4000])
def test_the_rate_of_a_parabola_is_found_within_a_tuning_of_trials(at_600: float, steps: int) -> None:
    trials = make_trials(steps, at_600)
    found = foretell_rate(trials, steps)
    if found.is_at_edge:
        assert found.cost >= 0.9 and "edge of the rates tried" in str(found)
    else:
        assert found.rate == pytest.approx(at_600 * (steps / 600) ** LAW_SLOPE, rel=0.06)
    assert found.cost <= 1.0 and min(trial.steps for trial in trials) >= 100


def test_rates_that_diverge_are_left_and_count_as_worse() -> None:
    assert foretell_rate(make_trials(600, 2e-3, highest=6e-3), 600).rate == pytest.approx(1.7e-3, rel=0.15)
    all_diverge = make_trials(600, 1e-3, highest=0.0)
    assert all(math.isinf(trial.loss) for trial in all_diverge) and foretell_rate(all_diverge, 600).is_at_edge


def test_two_lengths_tell_the_slope_as_far_as_they_are_certain() -> None:
    """Best at 0.004 after 100 steps and at 0.002 after 400: a slope of -0.5, and at 0.001 of -1."""

    def lay(steps: int, best: float) -> list[RateTrial]:
        return [RateTrial(best * f, steps, steps, math.exp(0.5 * math.log2(f) ** 2)) for f in (0.5, 1, 2)]

    for best, slope in ((2e-3, -0.5), (1e-3, -0.99)):
        found = foretell_rate([*lay(100, 4e-3), *lay(400, best)], 1600)
        assert best * 4**-1 <= found.rate <= best * 4**-0.5 * 1.01
        exact = best * 4**slope
        assert found.rate == pytest.approx(exact, rel=0.02) or slope == -0.99 and found.rate < best / 2
    noisy = foretell_rate([RateTrial(r, 100, 100, 1.0) for r in (1e-3, 2e-3, 4e-3)], 600)
    assert noisy.deviation >= 1.0, "equal losses tell nothing"


def test_short_tunings_follow_the_law_and_make_no_trials() -> None:
    assert propose_next_trial([], 299) is None and propose_next_trial([], 300) is not None
    assert [foretell_rate([], steps).rate for steps in (10, 60, 600, 2400)] == [
        2.5e-3,
        2.5e-3,
        1.3e-3,
        9.2e-4,
    ]
