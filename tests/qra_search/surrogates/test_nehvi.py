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


def test_nothing_is_compiled_for_it(monkeypatch):
    """BoTorch's compiled kernel waits for ever on the lock of a process that was killed while it compiled."""
    from botorch.acquisition.multi_objective import logei
    from torch.utils import cpp_extension

    asked = []
    monkeypatch.setattr(cpp_extension, "load", lambda **options: asked.append(options))
    monkeypatch.setattr(logei, "_load_attempted", False)
    rng = np.random.default_rng(0)
    inputs, sizes = rng.random((4, 3)), rng.integers(40, 100, 4)
    gp = fit_loss_gp(inputs, inputs.sum(1), 3.0 - 0.02 * sizes, use_proxy=False)
    log_nehvi(gp, sizes, inputs[:1] + 0.1, inputs[:1].sum(1), sizes[:1], (3.0, 101.0), samples=4)
    assert not asked
