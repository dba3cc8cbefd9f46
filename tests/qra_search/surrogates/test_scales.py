"""The regression of scales recovers them, is the Gaussian posterior, and is not led astray by broken plans."""

from __future__ import annotations

import numpy as np
import pytest

from qra_search.surrogates.scales import LEAST_SCALE, fit_scales


def problem(seed: int, plans: int = 60, groups: int = 6, noise: float = 0.0):
    rng = np.random.default_rng(seed)
    damage, gain = rng.gamma(1.0, 1.0, (plans, groups)), rng.random(plans)
    scales = rng.uniform(0.5, 1.5, groups)
    return damage, gain, 2.0 + damage @ scales - 0.7 * gain + noise * rng.standard_normal(plans), scales


def test_it_recovers_the_scales_of_noise_free_losses():
    damage, gain, losses, scales = problem(0, plans=200)
    found, found_gain = fit_scales(damage, gain, losses)
    assert found == pytest.approx(scales, rel=0.05)
    assert found_gain == pytest.approx(0.7, rel=0.3)


def test_few_trials_pull_towards_one_common_scale():
    damage, gain, losses, scales = problem(1, plans=5, noise=0.1)
    found, _ = fit_scales(damage, gain, losses)
    assert found.std() < scales.std()


def test_scales_stay_positive_whatever_the_losses():
    damage, gain, losses, _ = problem(2)
    found, found_gain = fit_scales(damage, gain, -losses)
    assert (found > 0).all() and found_gain > 0
    assert LEAST_SCALE > 0


def test_a_broken_plan_hardly_moves_them():
    damage, gain, losses, scales = problem(3, plans=120)
    losses[0] += 50.0
    found, _ = fit_scales(damage, gain, losses)
    assert found == pytest.approx(scales, rel=0.5)


def test_constant_columns_and_losses_are_no_error():
    found, found_gain = fit_scales(np.ones((4, 3)), np.zeros(4), np.full(4, 2.0))
    assert np.isfinite(found).all() and np.isfinite(found_gain)
