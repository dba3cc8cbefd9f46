"""Hyperparameters of a fitted table by its evidence: coordinate steps, each a Cholesky factor of N x N."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from scipy.linalg import solve_triangular

from qra_search.surrogates.table import TableFit, Widths

KNOWN_TO = {
    "noise": 1.5, "misfit": 0.7, "scale": 0.7, "offset": 0.7, "decay": 0.7, "gain": 0.7, "shift": 1.5, "units": 4.0,
}  # fmt: skip
"""Hyperparameters that the log teaches, and the deviation of their logarithms about where they start."""
STEP, SWEEPS = 2.0, 2
LOUDER = 30.0
"""Factor of the noise at the second start: from little noise, single steps end at a table that explains noise by
damages far from the prior's."""
ANY_UNITS = 4.0
"""Deviation of the log of the gain's overall scale at the third start: single steps from a scale near 1 do not find a
gain in much smaller units, since it explains nothing."""
LEAST = 1e-6
"""A step must raise the log evidence by more than rounding could."""


def refine(fit: TableFit) -> TableFit:
    """The fit with better hyperparameters, the likeliest of those reached from little noise, from much, and from a
    gain in any units.

    The evidence is that of the model linearised at the mode. `SWEEPS` times every hyperparameter is doubled or halved
    for as long as that helps.
    """
    others = [replace(fit.widths, noise=LOUDER * fit.widths.noise)]
    if fit.widths.units:
        others.append(replace(fit.widths, units=ANY_UNITS))
    starts = [fit, *(TableFit(fit.basis, fit.rows, widths) for widths in others)]
    found = [_climb(start, fit.widths) for start in starts]
    return max(found, key=lambda some: _evidence(some, some.widths, fit.widths))


def _climb(fit: TableFit, prior: Widths) -> TableFit:
    """The fit at the nearest hyperparameters that no step betters, `prior` being where they are expected."""
    start = fit.widths
    best, at = start, _evidence(fit, start, prior)
    learnt = [name for name in KNOWN_TO if getattr(start, name) != 0.0]
    for _ in range(SWEEPS):
        before = best
        for name, factor in itertools.product(learnt, (STEP, 1.0 / STEP)):
            while True:
                trial = replace(best, **{name: getattr(best, name) * factor})
                value = _evidence(fit, trial, prior)
                if value <= at + LEAST:
                    break
                best, at = trial, value
        if best == before:
            break
    return fit if best == start else TableFit(fit.basis, fit.rows, best, fit.theta)


def _evidence(fit: TableFit, w: Widths, prior: Widths) -> float:
    """Log evidence of hyperparameters, plus their log prior; -inf if the covariance is not positive."""
    total = np.tensordot(list(fit.block_variances(w)), fit.grams, 1)
    total[np.diag_indices(len(total))] += fit.observation_variance(w, fit.rows.weight, fit.excess)
    try:
        L = np.linalg.cholesky(total)
    except np.linalg.LinAlgError:
        return -np.inf
    half = solve_triangular(L, fit.target, lower=True)
    value = -0.5 * float(half @ half) - float(np.log(np.diag(L)).sum())
    for name, deviation in KNOWN_TO.items():
        if getattr(prior, name):
            value -= 0.5 * (np.log(getattr(w, name) / getattr(prior, name)) / deviation) ** 2
    return value
