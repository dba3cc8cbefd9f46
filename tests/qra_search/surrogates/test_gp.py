"""The Gaussian process reads out what BoTorch's own posterior says, and its mean follows the proxy only if data do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from qra_search.surrogates.gp import (
    choice_values,
    fit_loss_gp,
    kernel_module,
    ordinal_choices,
    proxy_mean,
    seeded_torch,
    warped_choices,
)
from qra_search.testing.scenarios import toy_space

RNG = np.random.default_rng(0)
INPUTS = RNG.random((30, 6))
PROXY = INPUTS.sum(1)
LOSSES = 2.0 + 3.0 * PROXY + 0.2 * np.sin(5 * INPUTS[:, 0])


@pytest.fixture(scope="module", params=["rbf", "matern52"])
def gp(request):
    return fit_loss_gp(INPUTS, PROXY, LOSSES, kernel=request.param)


def botorch_model(gp, known):
    """BoTorch's model of the standardized loss with the hyperparameters of `gp`, given inputs and proxy (N, D + 1)."""
    from botorch.models import SingleTaskGP

    columns = gp.inputs.shape[1]
    unit = gp.residual + gp.constant + gp.slope * gp.proxy
    covariance = kernel_module(columns, gp.kernel, ard=True)
    model = SingleTaskGP(
        known,
        torch.as_tensor(unit)[:, None],
        train_Yvar=torch.full((len(unit), 1), gp.noise, dtype=torch.double),
        covar_module=covariance,
        mean_module=proxy_mean(columns, gp.slope, gp.constant, learn=False),
        outcome_transform=None,
    ).double()
    covariance.lengthscale = torch.as_tensor(gp.lengthscale)
    return model.eval()


def test_its_posterior_equals_botorchs(gp):
    new = np.random.default_rng(1).random((7, 6))
    known = torch.as_tensor(np.column_stack([INPUTS, PROXY]))
    posterior = botorch_model(gp, known).posterior(torch.as_tensor(np.column_stack([new, new.sum(1)])))
    mean, std = gp.predict(new, new.sum(1))
    assert mean == pytest.approx(gp.center + gp.scale * posterior.mean.detach().numpy().ravel(), rel=1e-6)
    assert std == pytest.approx(gp.scale * posterior.variance.detach().numpy().ravel() ** 0.5, rel=1e-3, abs=1e-6)


def test_it_learns_the_slope_of_a_proxy_and_predicts(gp):
    assert gp.slope * gp.scale == pytest.approx(3.0, abs=0.5)
    new = np.random.default_rng(2).random((50, 6))
    mean, std = gp.predict(new, new.sum(1))
    truth = 2.0 + 3.0 * new.sum(1) + 0.2 * np.sin(5 * new[:, 0])
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 0.1
    assert np.mean(np.abs(mean - truth) < 3 * std) > 0.9


def test_a_worthless_proxy_is_overruled():
    noise = np.random.default_rng(3).standard_normal(30)
    gp = fit_loss_gp(INPUTS, noise, LOSSES)
    assert abs(gp.slope) < 0.2
    new = np.random.default_rng(4).random((50, 6))
    mean, _ = gp.predict(new, np.zeros(50))
    assert np.corrcoef(mean, 2.0 + 3.0 * new.sum(1))[0, 1] > 0.9


def test_fantasies_keep_the_mean_and_shrink_the_deviation(gp):
    new = np.random.default_rng(5).random((4, 6))
    before, spread = gp.predict(new, new.sum(1))
    after, less = gp.fantasize(new, new.sum(1)).predict(new, new.sum(1))
    assert after == pytest.approx(before, rel=1e-6)
    assert (less < spread).all()


def test_a_fit_is_a_function_of_its_arguments_and_leaves_torch_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = fit_loss_gp(INPUTS, PROXY, LOSSES, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    again = fit_loss_gp(INPUTS, PROXY, LOSSES, seed=2)
    for field in dataclasses.fields(first):
        assert np.array_equal(getattr(first, field.name), getattr(again, field.name))


def test_seeded_torch_gives_back_the_threads_even_after_an_error():
    threads = torch.get_num_threads()
    with pytest.raises(KeyError), seeded_torch(0):
        raise KeyError
    assert torch.get_num_threads() == threads


def test_levels_are_warped_to_the_error_of_their_bits_and_the_log_of_their_rank():
    space = toy_space(2, bits=(2, 3, 4, 16), ranks=(0, 1, 3))
    values = warped_choices(space)
    assert values[0, 0] == pytest.approx([1.0, 0.25, 0.0625, 0.0])
    assert values[1, 0, :3] == pytest.approx([0.0, 0.5, 1.0])
    assert choice_values(values, np.array([[[3, 0], [1, 2]]])) == pytest.approx(np.array([[0.0, 1.0, 0.5, 1.0]]))
    assert ordinal_choices(space)[0, 0] == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])


def test_a_single_choice_is_a_constant_input():
    assert not warped_choices(toy_space(1, bits=(4,), ranks=(8,))).any()
