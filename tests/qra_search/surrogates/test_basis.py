"""What the model makes of sensitivities."""

from __future__ import annotations

import numpy as np

from qra_search.schemas import Sensitivities
from qra_search.surrogates.basis import FLOOR, TableBasis
from qra_search.testing.scenarios import make_toy_space


def test_damage_near_zero_by_luck_is_not_zero():
    space = make_toy_space(4)
    damage = np.tile([1.0, 0.3, 0.1, 0.01], (4, 1))
    damage[2, 0] = 0.0
    basis = TableBasis(space, Sensitivities(damage, np.zeros((4, 3))))
    np.testing.assert_allclose(np.exp(basis.log_damage[2, 0]), FLOOR * 0.75)
    np.testing.assert_allclose(np.exp(basis.log_damage[1]), damage[1])


def test_a_bit_width_without_any_damage_does_none():
    space = make_toy_space(3, bits=(2, 4, 16))
    basis = TableBasis(space, Sensitivities(np.tile([1.0, 0.2, 0.0], (3, 1)), np.zeros((3, 3))))
    assert basis.live.tolist() == [[True, True, False]] * 3


def test_gain_is_drawn_half_way_to_the_mean_and_rises_from_zero():
    space = make_toy_space(2)
    gain = np.array([[0.1, 0.2, 0.3], [0.1, 0.4, 0.7]])
    basis = TableBasis(space, Sensitivities(np.ones((2, 4)), gain))
    np.testing.assert_allclose(basis.gain, [[0.0, 0.15, 0.3], [0.0, 0.25, 0.5]])
