"""The worth of an evaluation, against closed forms and Monte Carlo."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from qra_search.surrogates.worth import Outlook


def expected_improvement(gap: float, sd: float) -> float:
    return sd * norm.pdf(gap / sd) - gap * norm.cdf(-gap / sd)


def test_one_new_plan_against_a_certain_one_is_expected_improvement():
    outlook = Outlook(np.array([0.0, 0.2]), np.array([[0.0, 0.3]]), np.array([1]), np.array([True, False]))
    fits = np.ones(2, bool)
    expected = expected_improvement(0.2, 0.3)
    np.testing.assert_allclose(outlook.handover(fits), expected, rtol=0.1)
    np.testing.assert_allclose(outlook.anywhere(fits, 10), expected, rtol=0.1)


def test_the_handover_agrees_with_monte_carlo():
    rng = np.random.default_rng(0)
    mean = rng.normal(0, 0.1, 6)
    reach = rng.normal(0, 0.2, (4, 6))
    known = np.array([True, True, True, False, False, False])
    own = np.array([3, 4, 5, -1])
    z = rng.standard_normal(200_000)
    outlook = Outlook(mean, reach, own, known)
    got = outlook.handover(np.ones(6, bool))
    for e in range(4):
        pool = [0, 1, 2, *([own[e]] if own[e] >= 0 else [])]
        after = (mean[pool] + z[:, None] * reach[e, pool]).min(1).mean()
        np.testing.assert_allclose(got[e], mean[:3].min() - after, rtol=0.06, atol=0.003)


def test_a_plan_over_the_budget_is_worth_only_what_it_tells_of_others():
    mean, known = np.array([0.0, -1.0]), np.array([True, False])
    fits = np.array([True, False])
    blind = Outlook(mean, np.array([[0.0, 0.5]]), np.array([1]), known)
    np.testing.assert_allclose(blind.handover(fits), 0.0, atol=1e-12)


def test_nothing_within_the_budget_is_worth_nothing():
    outlook = Outlook(np.zeros(2), np.ones((1, 2)), np.array([1]), np.array([True, False]))
    assert outlook.handover(np.zeros(2, bool)).tolist() == [0.0]
    assert outlook.anywhere(np.zeros(2, bool), 5).tolist() == [0.0]
