"""The promotion model begins at the cheap score, learns what it misses, and shrugs off broken plans."""

from __future__ import annotations

import numpy as np
import torch

from qra_search.surrogates.promotion import MIN_PAIRS, fit_promotion


def data(seed: int, count: int):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, 4))
    return features, 2.0 + 0.8 * features[:, 0] + 0.5 * np.maximum(features[:, 1], 0.0)


def test_it_predicts_the_loss_of_new_plans_better_than_the_line_in_the_cheap_score():
    features, losses = data(0, 80)
    model = fit_promotion(features, losses)
    new, truth = data(1, 200)
    line = np.polyfit(features[:, 0], losses, 1)
    error = np.sqrt(np.mean((model.predict(new) - truth) ** 2))
    assert error < 0.6 * np.sqrt(np.mean((np.polyval(line, new[:, 0]) - truth) ** 2))


def test_too_few_pairs_give_no_model():
    features, losses = data(3, MIN_PAIRS - 1)
    assert fit_promotion(features, losses) is None


def test_one_broken_plan_does_not_spoil_the_order_of_the_others():
    features, losses = data(4, 60)
    losses[0] += 30.0
    new, truth = data(5, 200)
    assert np.corrcoef(fit_promotion(features, losses).predict(new), truth)[0, 1] > 0.8


def test_a_fit_is_a_function_of_its_arguments():
    features, losses = data(6, 20)
    first = fit_promotion(features, losses, seed=3).predict(features)
    torch.rand(5)
    assert np.array_equal(first, fit_promotion(features, losses, seed=3).predict(features))


def test_constant_descriptors_are_no_error():
    model = fit_promotion(np.ones((10, 3)), np.linspace(1, 2, 10))
    assert np.isfinite(model.predict(np.ones((2, 3)))).all()
