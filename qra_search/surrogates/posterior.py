"""The table of losses fitted to a study, its hyperparameters by their evidence."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from scipy.linalg import solve_triangular
from threadpoolctl import ThreadpoolController

from qra_search.allocate.solve import build_additive_table
from qra_search.log.state import StudyState
from qra_search.schemas import Plan
from qra_search.surrogates.basis import MOST_GROUPS, Rows, TableBasis, Widths
from qra_search.surrogates.table import TableFit

BLAS = ThreadpoolController()
"""Held to one thread: the matrices are small, more threads wait on each other wherever the cores are busy (a hundred
times the processor time was seen), and rounding, and so the proposals, would depend on their number."""
KNOWN_TO = {
    "noise": 1.5,
    "misfit": 0.7,
    "scale": 0.7,
    "offset": 0.7,
    "decay": 0.7,
    "gain": 0.7,
    "units": 4.0,
}
"""Hyperparameters that the log teaches, and the deviation of their logarithms about where they start."""
STEP = 2.0
SWEEPS = 2
LOUDER = 30.0
"""Factor of the noise at the second start: from little noise, single steps end at a table that explains noise by
damages far from the prior's."""
ANY_UNITS = 4.0
"""Deviation of the log of the gain's overall scale at the third start: single steps from a scale near 1 do not find a
gain in much smaller units, since it explains nothing."""
LEAST = 1e-6
"""A step must raise the log evidence by more than rounding could."""


def compute_posterior_table(state: StudyState) -> np.ndarray:
    """float (G, B, R): nats of loss that each choice adds, by the sensitivities and the trials at full fidelity.

    The mode of the fitted table; `build_additive_table` of the sensitivities while no trial has ended, and above
    `MOST_GROUPS` groups.
    """
    with BLAS.limit(limits=1, user_api="blas"):
        fit = fit_table(state)
    if fit is None:
        return build_additive_table(state.space, state.sensitivities)
    return fit.compute_posterior_mode()


def fit_table(state: StudyState) -> TableFit | None:
    """The table given the plans evaluated in full, in the order in which they first appear; None if there are none, or
    more than `MOST_GROUPS` groups."""
    losses: dict[Plan, list[float]] = {}
    for trial in state.full:
        losses.setdefault(trial.plan, []).append(trial.loss)
    if not losses or len(state.space) > MOST_GROUPS:
        return None
    weight = np.array([len(each) for each in losses.values()], float)
    mean = np.array([float(np.mean(each)) for each in losses.values()])
    rows = Rows(state.space.encode_many(losses), mean, weight)
    return refine(TableFit(TableBasis(state.space, state.sensitivities), rows, Widths()))


def refine(fit: TableFit) -> TableFit:
    """The fit with better hyperparameters, the likeliest of those reached from little noise, from much, and from a
    gain in any units.

    The evidence is that of the model linearised at the mode. `SWEEPS` times every hyperparameter is doubled or halved
    for as long as that helps.
    """
    others = replace(fit.widths, noise=LOUDER * fit.widths.noise), replace(fit.widths, units=ANY_UNITS)
    starts = [fit, *(TableFit(fit.basis, fit.rows, widths) for widths in others)]
    found = [_climb_evidence(start, fit.widths) for start in starts]
    return max(found, key=lambda some: _compute_log_posterior(some, some.widths, fit.widths))


def _climb_evidence(fit: TableFit, prior: Widths) -> TableFit:
    """The fit at the nearest hyperparameters that no step betters, `prior` being where they are expected."""
    start = fit.widths
    best = start
    at = _compute_log_posterior(fit, start, prior)
    for _ in range(SWEEPS):
        before = best
        for name, factor in itertools.product(KNOWN_TO, (STEP, 1.0 / STEP)):
            while True:
                trial = replace(best, **{name: getattr(best, name) * factor})
                value = _compute_log_posterior(fit, trial, prior)
                if value <= at + LEAST:
                    break
                best = trial
                at = value
        if best == before:
            break
    return fit if best == start else TableFit(fit.basis, fit.rows, best, fit.theta)


def _compute_log_posterior(fit: TableFit, w: Widths, prior: Widths) -> float:
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
        value -= 0.5 * (np.log(getattr(w, name) / getattr(prior, name)) / deviation) ** 2
    return value
