"""The Gaussian process predicts, overrules a worthless proxy, and keeps its mean under fantasies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qra_search.surrogates.gp import (
    encode_inputs,
    fit_loss_gp,
    scale_by_error,
    scale_by_order,
    use_one_thread,
)
from qra_search.testing.scenarios import make_toy_space

RNG = np.random.default_rng(0)
INPUTS = RNG.random((30, 6))
LOSSES = 2.0 + 3.0 * INPUTS.sum(1) + 0.2 * np.sin(2 * INPUTS[:, :3].sum(1))


def add_proxy(inputs):
    return np.column_stack([inputs, inputs.sum(1)])


@pytest.fixture(scope="module", params=["rbf", "matern52"])
def gp(request):
    return fit_loss_gp(add_proxy(INPUTS), LOSSES, kernel=request.param)


def test_it_learns_the_slope_of_a_proxy_and_predicts(gp):
    assert gp.model.mean_module.slope.item() * gp.scale == pytest.approx(3.0, abs=0.5)
    new = np.random.default_rng(2).random((50, 6))
    mean, std = gp.predict(add_proxy(new))
    truth = 2.0 + 3.0 * new.sum(1) + 0.2 * np.sin(2 * new[:, :3].sum(1))
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 0.1
    assert np.mean(np.abs(mean - truth) < 3 * std) > 0.7


def test_a_worthless_proxy_is_overruled():
    noise = np.random.default_rng(3).standard_normal(30)
    gp = fit_loss_gp(np.column_stack([INPUTS, noise]), LOSSES)
    new = np.random.default_rng(4).random((50, 6))
    mean, _ = gp.predict(np.column_stack([new, np.zeros(50)]))
    assert np.corrcoef(mean, 2.0 + 3.0 * new.sum(1))[0, 1] > 0.9


def test_fantasies_keep_the_mean_and_shrink_the_deviation(gp):
    new = add_proxy(np.random.default_rng(5).random((4, 6)))
    before, spread = gp.predict(new)
    after, less = gp.fantasize(new).predict(new)
    assert after == pytest.approx(before, rel=1e-6)
    assert (less < spread).all()


def test_a_fit_is_a_function_of_its_arguments_and_leaves_torch_alone():
    inputs = add_proxy(INPUTS)
    gp = fit_loss_gp(inputs, LOSSES)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert np.array_equal(fit_loss_gp(inputs, LOSSES).predict(inputs[:3]), gp.predict(inputs[:3]))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(KeyError), use_one_thread():
        raise KeyError
    assert torch.get_num_threads() == threads


def test_choices_are_scaled_to_the_error_of_their_bits_and_the_log_of_their_rank():
    space = make_toy_space(2, bits=(2, 3, 4, 16), ranks=(0, 1, 3))
    values = scale_by_error(space)
    assert values[0, 0] == pytest.approx([1.0, 0.25, 0.0625, 0.0])
    assert values[1, 0, :3] == pytest.approx([0.0, 0.5, 1.0])
    assert encode_inputs(values, np.array([[[3, 0], [1, 2]]])) == pytest.approx(
        np.array([[0.0, 1.0, 0.5, 1.0]])
    )
    assert scale_by_order(space)[0, 0] == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    assert not scale_by_error(make_toy_space(1, bits=(4,), ranks=(8,))).any()
