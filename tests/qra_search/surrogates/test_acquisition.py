"""Expected improvement on a log scale is exact far into the tails, and the local search ends at a local maximum."""

from __future__ import annotations

import numpy as np
import pytest

from qra_search.space.steps import Steps
from qra_search.surrogates.acquisition import log_expected_improvement, search_locally
from qra_search.testing.scenarios import toy_space


@pytest.mark.parametrize("u", [5.0, 1.0, 0.0, -0.5, -1.0, -1.5, -5.0, -40.0, -900.0, -1e4, -1e6])
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
    space = toy_space(3, restricted=True)
    steps = Steps(space)
    worth = np.random.default_rng(0).random(steps.allowed.shape)
    side, group = np.indices(worth.shape[:2])

    def score(codes):
        return worth[side, group, codes].sum((1, 2))

    best = np.where(steps.allowed, worth, -np.inf).argmax(-1)
    start = steps.random(np.random.default_rng(1))[None]
    none = np.zeros((0, *best.shape), int)
    assert np.array_equal(search_locally(score, start, steps.allowed, none), best)
    second = search_locally(score, start, steps.allowed, best[None])
    assert (second != best).sum() == 1
