"""The evidence is that of a Gaussian, and finds the noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.stats import multivariate_normal
from table_world import World

from qra_search.surrogates.basis import Widths
from qra_search.surrogates.posterior import _compute_evidence, refine
from qra_search.surrogates.table import TableFit


def test_the_evidence_is_that_of_a_gaussian():
    """Up to constants: scipy's density of the linearised targets."""
    world = World()
    fit = TableFit(world.basis, world.rows(25), Widths())
    values = []
    for widths in (Widths(), Widths(scale=0.6)):
        cov = np.tensordot(list(fit.block_variances(widths)), fit.grams, 1) + np.diag(
            fit.observation_variance(widths, fit.rows.weight, fit.excess)
        )
        density = multivariate_normal(np.zeros(25), cov, allow_singular=True).logpdf(fit.target)
        prior = -0.5 * (np.log(widths.scale / 0.3) / 0.7) ** 2
        values.append((_compute_evidence(fit, widths, fit.widths), density + prior))
    (a, x), (b, y) = values
    np.testing.assert_allclose(a - b, x - y, rtol=1e-6)


def test_noisier_losses_are_seen_to_be_noisier():
    noise = []
    for sd in (0.003, 0.05):
        world = World()
        fit = refine(TableFit(world.basis, world.rows(80, noise=sd), Widths()))
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
        fit = refine(TableFit(world.basis, rows, Widths()))
        assert 0.5 * sd < fit.widths.noise * fit.spread < 1.5 * sd
        assert np.median(fit.predict_evaluated()[1]) > 0.1 * sd
