"""The worth of an evaluation, against closed forms and Monte Carlo, and the plan that is worth most."""

from __future__ import annotations

import numpy as np
import pytest

from qra_search.space.steps import AdjacentSteps
from qra_search.surrogates.acquisition import knowledge_gradient, log_expected_improvement, search_locally
from qra_search.testing.scenarios import make_toy_space


@pytest.mark.parametrize("u", [5.0, 1.0, 0.0, -0.5, -1.0, -1.5, -5.0, -40.0, -900.0, -1e4])
def test_log_expected_improvement_equals_the_formula_in_many_digits(u):
    mpmath = pytest.importorskip("mpmath", reason="mpmath comes with torch's sympy")
    with mpmath.workdps(60):
        x = mpmath.mpf(u)
        phi = mpmath.npdf(x)
        tail = mpmath.erfc(-x / mpmath.sqrt(2)) / 2
        exact = float(mpmath.log(phi + x * tail) + mpmath.log(mpmath.mpf("0.3")))
    got = log_expected_improvement(np.array(-0.3 * u), np.array(0.3), np.array(0.0))
    assert got == pytest.approx(exact, rel=1e-9)


def test_the_local_search_finds_the_best_plan_of_a_separable_score_and_passes_over_known_ones():
    space = make_toy_space(3, restricted=True)
    steps = AdjacentSteps(space)
    worth = np.random.default_rng(0).random(steps.allowed.shape)
    side, group = np.indices(worth.shape[:2])

    def score(codes):
        return worth[side, group, codes].sum((1, 2))

    best = np.where(steps.allowed, worth, -np.inf).argmax(-1)
    start = steps.sample(np.random.default_rng(1))[None]
    none = np.zeros((0, *best.shape), int)
    assert np.array_equal(search_locally(score, start, steps.allowed, none), best)
    second = search_locally(score, start, steps.allowed, best[None])
    assert (second != best).sum() == 1


def test_it_agrees_with_monte_carlo():
    rng = np.random.default_rng(0)
    mean, change = rng.normal(0, 0.1, 6), rng.normal(0, 0.2, (3, 6))
    z = rng.standard_normal(200_000)
    got = knowledge_gradient(mean, change, 3, np.ones(6, bool))
    for e in range(3):
        pool = [0, 1, 2, 3 + e]
        after = (mean[pool] + z[:, None] * change[e, pool]).min(1).mean()
        np.testing.assert_allclose(got[e], mean[:3].min() - after, rtol=0.06, atol=0.003)


def test_a_plan_over_the_budget_is_worth_only_what_it_tells_of_others():
    mean, fits = np.array([0.0, 0.1, -1.0]), np.array([True, True, False])
    assert knowledge_gradient(mean, np.array([[0.0, 0.0, 0.5]]), 2, fits) == pytest.approx([0.0], abs=1e-12)
    assert knowledge_gradient(mean, np.array([[0.0, 0.3, 0.5]]), 2, fits)[0] > 0.05


def test_while_nothing_known_fits_the_plan_of_lowest_mean_is_worth_most():
    mean, fits = np.array([1.0, 0.4, 0.2, 0.1]), np.array([False, True, True, False])
    assert knowledge_gradient(mean, np.zeros((3, 4)), 1, fits) == pytest.approx([0.6, 0.8, 0.0])
