"""The closed form over memory strips agrees with BoTorch's Monte Carlo hypervolume improvement."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qra_search.surrogates.gp import fit_loss_gp
from qra_search.surrogates.memory_strips import Strips
from qra_search.surrogates.nehvi import log_nehvi

SAMPLES = 1 << 12


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
