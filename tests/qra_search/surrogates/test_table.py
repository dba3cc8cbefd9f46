"""The table: what it makes of sensitivities, its posterior and predictions, and the evidence that finds the noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from table_world import World

from qra_search.allocate.solve import compute_table_losses
from qra_search.schemas import Sensitivities
from qra_search.surrogates.basis import DAMAGE_FLOOR, AveragedTrials, PriorDeviations, TableBasis
from qra_search.surrogates.posterior import TableFit, _compute_log_posterior, fit_hyperparameters
from qra_search.testing.scenarios import make_toy_space


def test_the_mode_is_stationary():
    """theta = S J' V^-1 (loss - f(theta)): the gradient of the log posterior vanishes."""
    world = World()
    rows = world.rows(30)
    fit = TableFit(world.basis, rows, PriorDeviations())
    for _ in range(10):  # Gauss-Newton stops when close; go on from there
        fit = TableFit(world.basis, rows, PriorDeviations(), fit.theta)
    f, J = fit._linearize(rows.codes, fit.theta)
    misfit = (rows.loss - fit.best - f) / fit.V
    for theta, SJ in zip(fit.theta, fit._multiply_by_covariances(J), strict=True):
        np.testing.assert_allclose(theta, SJ.T @ misfit, atol=2e-3)


def test_it_learns_a_table_from_fewer_plans_than_the_table_has_entries_with_honest_deviations():
    world = World()
    codes = world.plans(300)
    truth = world.loss(codes)
    few, many = (
        fit_hyperparameters(TableFit(world.basis, world.rows(count), PriorDeviations())).predict(codes)
        for count in (10, 60)
    )
    errors = [float(np.sqrt(np.mean((mean - truth) ** 2)) / truth.std()) for mean, _ in (few, many)]
    assert errors[1] < 0.15 and errors[1] < errors[0] / 2
    scores = (many[0] - truth) / np.sqrt(np.diag(many[1]))
    assert 0.5 < np.sqrt(np.mean(scores**2)) < 1.6


def test_draws_have_the_posteriors_mean_and_deviation():
    world = World()
    fit = fit_hyperparameters(TableFit(world.basis, world.rows(80), PriorDeviations()))
    codes = world.plans(20)
    tables = fit.sample_tables(np.random.default_rng(0), np.ones(4000))
    sums = np.stack([compute_table_losses(table, codes) for table in tables])
    mean, cov = fit.predict(codes)
    # The constant c is no part of a table: compare what plans differ by.
    contrast = np.eye(20) - 1 / 20
    deviation = np.sqrt(np.diag(contrast @ cov @ contrast))
    np.testing.assert_allclose((sums @ contrast).std(0), deviation, rtol=0.15)
    np.testing.assert_allclose((sums @ contrast).mean(0), contrast @ mean, atol=0.3 * float(deviation.max()))


def test_a_draw_of_no_width_is_the_mode_and_all_damage_is_positive():
    world = World()
    fit = TableFit(world.basis, world.rows(20), PriorDeviations())
    tables = fit.sample_tables(np.random.default_rng(0), np.array([0.0, 0.0, 3.0]))
    np.testing.assert_array_equal(tables[0], tables[1])
    np.testing.assert_array_equal(tables[0], fit.compute_tables(fit.theta))
    assert (np.diff(tables, axis=3) <= 0).mean() > 0.5
    assert (fit._compute_damage(fit.theta) > 0).all()


def test_a_shuffled_prior_loses_trust_and_a_right_one_keeps_it():
    trust = {}
    for shuffled in (False, True):
        world = World(prior_error=0.1, shuffled=shuffled)
        trust[shuffled] = (
            1.0 + fit_hyperparameters(TableFit(world.basis, world.rows(80), PriorDeviations())).theta.trust[0]
        )
    assert trust[False] > 0.6
    assert trust[True] < 0.4


@pytest.mark.parametrize("damage, gain", [(1e-5, 1.0), (1e5, 1.0), (1.0, 1e-5), (1.0, 1e5)])
def test_a_prior_in_any_units_predicts_as_one_in_nats_does(damage, gain):
    errors = []
    for factors in ((1.0, 1.0), (damage, gain)):
        world = World()
        given = world.sensitivities
        scaled = Sensitivities(factors[0] * given.bits_damage, factors[1] * given.rank_gain)
        fit = fit_hyperparameters(
            TableFit(TableBasis(world.space, scaled), world.rows(40), PriorDeviations())
        )
        codes = world.plans(200)
        errors.append(np.std(fit.predict(codes)[0] - world.loss(codes)) / np.std(world.loss(codes)))
    assert errors[1] < 1.2 * errors[0] < 0.2


def test_losses_far_below_the_sensitivities_can_be_fitted_where_a_plan_is_repeated():
    world = World()
    codes = world.plans(8)[[0, *range(8)]]
    rows = AveragedTrials(codes, 1e-8 * world.loss(codes), np.ones(9))
    mean, cov = fit_hyperparameters(TableFit(world.basis, rows, PriorDeviations())).predict(world.plans(20))
    assert np.isfinite(mean).all() and (np.diag(cov) >= 0).all()


def test_a_broken_plan_does_not_change_what_is_believed_of_good_ones():
    world = World()
    rows = world.rows(40)
    codes = world.plans(50)
    before, _ = TableFit(world.basis, rows, PriorDeviations()).predict(codes)
    broken = rows.append(codes[:1] * 0, np.array([40.0]))
    after, _ = TableFit(world.basis, broken, PriorDeviations()).predict(codes)
    assert np.abs(after - before).max() < 0.1 * before.std()


def test_lucky_draws_count_for_no_more_than_unlucky_ones():
    bias = []
    for seed in range(4):
        world = World()
        rows = world.rows(60)
        truth = world.loss(rows.codes)
        luck = 0.3 * (truth - truth.min()) * np.random.default_rng(seed).standard_normal(60)
        seen = AveragedTrials(rows.codes, truth + luck, rows.weight)
        codes = world.plans(200)
        mean, _ = fit_hyperparameters(TableFit(world.basis, seen, PriorDeviations(misfit=0.3))).predict(codes)
        bias.append(np.mean(mean - world.loss(codes)) / world.loss(codes).std())
    # Weighed by what was observed, losses come out a quarter of their spread too low.
    assert abs(np.mean(bias)) < 0.1


def test_pending_plans_narrow_the_belief_and_leave_its_mean():
    world = World()
    fit = TableFit(world.basis, world.rows(30), PriorDeviations())
    codes = world.plans(5)
    before, cov_before = fit.predict(codes)
    after, cov_after = fit.condition_on(codes).predict(codes)
    np.testing.assert_allclose(after, before, atol=0.2 * float(np.sqrt(np.diag(cov_before)).max()))
    assert (np.diag(cov_after) < 0.5 * np.diag(cov_before)).all()


def test_replicates_count_for_more():
    world = World()
    rows = world.rows(20, noise=0.02)
    widths = PriorDeviations(noise=0.2)
    once = TableFit(world.basis, rows, widths).predict_evaluated()[1]
    weight = np.where(np.arange(20) == 3, 9.0, 1.0)
    often = TableFit(world.basis, AveragedTrials(rows.codes, rows.loss, weight), widths).predict_evaluated()[
        1
    ]
    assert often[3] < once[3]


def test_damage_near_zero_by_luck_is_not_zero():
    space = make_toy_space(4)
    damage = np.tile([1.0, 0.3, 0.1, 0.01], (4, 1))
    damage[2, 0] = 0.0
    basis = TableBasis(space, Sensitivities(damage, np.zeros((4, 3))))
    np.testing.assert_allclose(np.exp(basis.log_damage[2, 0]), DAMAGE_FLOOR * 0.75)
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


def test_the_evidence_is_that_of_a_gaussian():
    """Up to constants: scipy's density of the linearised targets."""
    world = World()
    fit = TableFit(world.basis, world.rows(25), PriorDeviations())
    values = []
    for widths in (PriorDeviations(), PriorDeviations(scale=0.6)):
        cov = np.tensordot(list(fit.block_variances(widths)), fit.grams, 1) + np.diag(
            fit.observation_variance(widths, fit.rows.weight, fit.excess)
        )
        density = multivariate_normal(np.zeros(25), cov, allow_singular=True).logpdf(fit.target)
        prior = -0.5 * (np.log(widths.scale / 0.3) / 0.7) ** 2
        values.append((_compute_log_posterior(fit, widths, fit.widths), density + prior))
    (a, x), (b, y) = values
    np.testing.assert_allclose(a - b, x - y, rtol=1e-6)


def test_noisier_losses_are_seen_to_be_noisier():
    noise = []
    for sd in (0.003, 0.05):
        world = World()
        fit = fit_hyperparameters(TableFit(world.basis, world.rows(80, noise=sd), PriorDeviations()))
        noise.append(float(np.sqrt(np.median(fit.V))))
    assert noise[1] > 3 * noise[0]
    assert 0.025 < noise[1] < 0.1


def test_losses_that_are_mostly_noise_are_not_explained_away():
    """Evaluations too short to tell plans apart, of more groups than plans: no damages may stand for their noise."""
    world = World(layers=200)
    for seed in range(4):
        rows = world.rows(30, noise=0.0)
        sd = 3.0 * float(np.std(rows.loss))
        rows = replace(rows, loss=rows.loss + sd * np.random.default_rng(seed).standard_normal(30))
        fit = fit_hyperparameters(TableFit(world.basis, rows, PriorDeviations()))
        assert 0.5 * sd < fit.widths.noise * fit.spread < 1.5 * sd
        assert np.median(fit.predict_evaluated()[1]) > 0.1 * sd
