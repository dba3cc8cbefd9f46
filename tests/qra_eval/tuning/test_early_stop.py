"""Training that can still end well is let go on; what cannot is cut short."""

from __future__ import annotations

import math

import pytest

from qra_eval.tuning.training import LEAST_MARGIN, ceiling, is_hopeless, optimistic_end


def test_nothing_is_said_before_two_windows_or_a_third_of_the_steps():
    assert optimistic_end([9.0] * 5, 12) == -math.inf
    assert optimistic_end([9.0] * 9, 30) == -math.inf
    assert optimistic_end([9.0] * 10, 30) == 9.0


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.4])
def test_a_fall_that_slows_down_never_ends_below_what_was_hoped(rate):
    losses = [3 + 8 * math.exp(-rate * t) for t in range(40)]
    for done in range(14, 40):
        assert optimistic_end(losses[:done], 40) <= losses[-1]


def test_a_loss_that_stays_up_is_hopeless_and_one_that_falls_fast_is_not():
    highest = ceiling(1.6, 49152, 0.5)
    assert is_hopeless([10.5, 10.4, 10.5, 10.4, 10.3, 10.4], 12, highest)
    assert not is_hopeless([12.9, 11.0, 9.0, 7.5, 6.5, 5.5], 12, highest)


def test_the_ceiling_lies_between_the_model_and_a_blind_guess_and_never_too_near_to_the_model():
    assert ceiling(2.0, 1000, 0.5) == pytest.approx((2 + math.log(1000)) / 2)
    assert ceiling(6.9, 1000, 0.5) == pytest.approx(6.9 + LEAST_MARGIN)
    assert ceiling(9.0, 1000, 0.5) == pytest.approx(9.0 + LEAST_MARGIN)
