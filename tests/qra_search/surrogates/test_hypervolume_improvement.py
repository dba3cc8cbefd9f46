"""The closed form over memory strips is the expected hypervolume improvement."""

from __future__ import annotations

import dataclasses

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nehvi import log_nehvi
from scipy.integrate import quad
from scipy.stats import norm

from qra_search.surrogates.gp import fit_loss_gp
from qra_search.surrogates.hypervolume_improvement import Strips, log_expected_improvement

REFERENCE = (3.0, 100.0)
SAMPLES = 1 << 12


def dominated_area(points, reference=REFERENCE):
    """Hypervolume of (loss, bytes) by moocore, with bytes cut below at -50: the strips reach down without end."""
    inside = [p for p in points if p[0] < reference[0] and p[1] < reference[1]]
    return float(moocore.hypervolume(np.array(inside), ref=np.array(reference))) if inside else 0.0


@given(
    st.lists(st.tuples(st.floats(0.5, 3.5), st.integers(1, 110)), min_size=0, max_size=8),
    st.tuples(st.floats(0.5, 3.5), st.floats(0.05, 1.0), st.integers(1, 110)),
)
@settings(max_examples=60, deadline=None)
def test_it_equals_the_integral_of_moocores_hypervolume(front, candidate):
    mean, std, size = candidate
    losses, sizes = np.array([p[0] for p in front]), np.array([p[1] for p in front])
    strips = Strips.of_front(losses, sizes, REFERENCE)
    got = np.exp(strips.log_improvement(np.array([mean]), np.array([std]), np.array([size])))[0]
    before = dominated_area(front)

    def weighted_gain(y):
        return (dominated_area([*front, (y, size)]) - before) * norm.pdf(y, mean, std)

    kinks = sorted({y for y in [*losses, REFERENCE[0]] if abs(y - mean) < 8 * std})
    expected = quad(weighted_gain, mean - 8 * std, mean + 8 * std, points=kinks or None, limit=400)[0]
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-9)


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


def test_a_plan_over_the_reference_bytes_counts_nothing():
    strips = Strips.of_front(np.array([1.0]), np.array([50]), REFERENCE)
    value = strips.log_improvement(np.array([0.0, 0.0]), np.array([0.1, 0.1]), np.array([100, 101]))
    assert (value == -np.inf).all()


def test_named_budgets_count_one_expected_improvement_each():
    losses, sizes = np.array([2.0, 1.5]), np.array([40, 80])
    strips = Strips.of_budgets(losses, sizes, (50, 90), worst=3.0)
    mean, std = np.array([1.4, 1.4]), np.array([0.2, 0.2])
    small, large = np.exp(strips.log_improvement(mean, std, np.array([45, 70])))
    one = np.exp(log_expected_improvement(mean[:1], std[:1], np.array([1.5])))[0]
    other = np.exp(log_expected_improvement(mean[:1], std[:1], np.array([2.0])))[0]
    assert large == pytest.approx(one)
    assert small == pytest.approx(one + other)


def test_the_closed_form_equals_qlognehvi_to_a_thousandth():
    """With next to no noise the baseline is certain, and both are the same expectation."""
    rng = np.random.default_rng(0)
    inputs, new = rng.random((8, 4)), rng.random((5, 4))
    sizes, new_sizes = rng.integers(40, 100, 8), rng.integers(40, 100, 5)
    losses = 3.0 - 0.02 * sizes + 0.3 * np.sin(4 * inputs[:, 0])
    gp = dataclasses.replace(fit_loss_gp(inputs, inputs.sum(1), losses, use_proxy=False), noise=1e-6)
    reference = (float(losses.max()) + 0.1, 101.0)
    mean, _ = gp.predict(inputs, inputs.sum(1))
    strips = Strips.of_front(mean, sizes, reference)
    closed = strips.log_improvement(*gp.predict(new, new.sum(1)), new_sizes)
    monte_carlo = log_nehvi(gp, sizes, new, new.sum(1), new_sizes, reference, samples=SAMPLES)
    scale = np.exp(closed).max()
    assert scale > 0.05
    assert np.exp(closed) == pytest.approx(np.exp(monte_carlo), abs=1e-3 * scale)
