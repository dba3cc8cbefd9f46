"""The loss as a Bayesian additive table over (group, bits, rank), fitted to the log in closed form, its hyperparameters
by their evidence.

    loss(plan) = c + sum_g T[g, b_g, r_g] + error
    T[g, b, r] = damage[g, b] exp(eta) - gain[g, r] exp(xi)
    eta        = A[b, r] + t deviation[g, b] + z[g] + o[g, b] - k[g] h(r)
    xi         = m + u[r] + v[g]

Damage is positive and wrong by factors, so it is Gaussian on a log scale: theta = (A, t, z, o, k, u, v, c, m) has
the distribution N(0, S). `basis.Blocks` says what each letter stands for. Gauss-Newton finds the mode; every step is a
Gaussian regression with N x N algebra,

    theta <- S J' (J S J' + V)^-1 (loss - f + J theta),

and the last one is the posterior (Laplace; MacKay 1992). V is diagonal: noise between seeds, and a misfit that grows
with the loss above the best, so that broken plans say little about good ones. The loss above the best is the
predicted one: weighed by what was observed, a lucky draw would count for more than an unlucky one.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cached_property

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from threadpoolctl import ThreadpoolController

from qra_search.allocate.solve import build_additive_table
from qra_search.log.state import StudyState
from qra_search.schemas import Plan
from qra_search.surrogates.basis import (
    MAX_GROUPS,
    Arrays,
    AveragedTrials,
    ParameterBlocks,
    PriorDeviations,
    TableBasis,
)

BLAS_THREADS = ThreadpoolController()
"""Held to one thread: the matrices are small, more threads wait on each other wherever the cores are busy (a hundred
times the processor time was seen), and rounding, and so the proposals, would depend on their number."""
HYPERPARAMETER_DEVIATIONS = {
    "noise": 1.5,
    "misfit": 0.7,
    "scale": 0.7,
    "offset": 0.7,
    "decay": 0.7,
    "gain": 0.7,
    "units": 4.0,
}
"""Hyperparameters that the log teaches, and the deviation of their logarithms about where they start."""
FACTOR = 2.0
MAX_SWEEPS = 2
NOISE_START_FACTOR = 30.0
"""Factor of the noise at the second start: from little noise, single steps end at a table that explains noise by
damages far from the prior's."""
GAIN_SCALE_DEVIATION = 4.0
"""Deviation of the log of the gain's overall scale at the third start: single steps from a scale near 1 do not find a
gain in much smaller units, since it explains nothing."""
MIN_IMPROVEMENT = 1e-6
"""A step must raise the log evidence by more than rounding could."""
NEWTON_STEPS = 8
MAX_STEP = 1.5
"""Gauss-Newton changes no log damage, nor the log scale of gain, by more than this in one step: exp() overshoots."""
CLOSE = 0.03
MAX_LOG = 16.0
"""Largest logarithm of the scales of damage and gain."""
MAX_DEVIATIONS = 3.0
"""The scale of gain starts at most so many of its deviations from 1."""
ROUNDING = 1e-9
"""Sums that differ by less than this share of their size do so by rounding."""
MIN_VARIANCE = 1e-13
"""Of a row, as a share of the largest: that of losses far below the sensitivities' is lost in rounding."""
OUTLIER_FACTOR = 2.0
"""A loss so many times as far above the best as predicted counts as what was observed: a plan that broke against all
expectation must not bend the table."""
GAIN_SD = 0.8
"""Deviation of what all groups share in the log gain of a rank."""
CONSTANT_SD = 1.0
"""Deviation of c around the best loss, in spreads; wide enough for any truth, and no wider: a c far below every loss
would let equal damages everywhere explain anything."""


def compute_posterior_table(state: StudyState) -> np.ndarray:
    """float (G, B, R): nats of loss that each choice adds, by the sensitivities and the trials at full fidelity.

    The mode of the fitted table; `build_additive_table` of the sensitivities while no trial has ended, and above
    `MAX_GROUPS` groups.
    """
    with BLAS_THREADS.limit(limits=1, user_api="blas"):
        fit = fit_table(state)
    if fit is None:
        return build_additive_table(state.space, state.sensitivities)
    return fit.compute_tables(fit.theta)


def fit_table(state: StudyState) -> TableFit | None:
    """The table given the plans evaluated in full, in the order in which they first appear; None if there are none, or
    more than `MAX_GROUPS` groups."""
    losses: dict[Plan, list[float]] = {}
    for trial in state.full:
        losses.setdefault(trial.plan, []).append(trial.loss)
    if not losses or len(state.space) > MAX_GROUPS:
        return None
    weight = np.array([len(each) for each in losses.values()], float)
    mean = np.array([float(np.mean(each)) for each in losses.values()])
    rows = AveragedTrials(state.space.encode_many(losses), mean, weight)
    return fit_hyperparameters(
        TableFit(TableBasis(state.space, state.sensitivities), rows, PriorDeviations())
    )


def fit_hyperparameters(fit: TableFit) -> TableFit:
    """The fit with better hyperparameters, the likeliest of those reached from little noise, from much, and from a
    gain in any units.

    The evidence is that of the model linearised at the mode. `MAX_SWEEPS` times every hyperparameter is doubled or
    halved for as long as that helps.
    """
    others = (
        replace(fit.widths, noise=NOISE_START_FACTOR * fit.widths.noise),
        replace(fit.widths, units=GAIN_SCALE_DEVIATION),
    )
    starts = [fit, *(TableFit(fit.basis, fit.rows, widths) for widths in others)]
    found = [_climb_evidence(start, fit.widths) for start in starts]
    return max(found, key=lambda some: _compute_log_posterior(some, some.widths, fit.widths))


def _climb_evidence(fit: TableFit, prior: PriorDeviations) -> TableFit:
    """The fit at the nearest hyperparameters that no step betters, `prior` being where they are expected."""
    start = fit.widths
    best = start
    at = _compute_log_posterior(fit, start, prior)
    for _ in range(MAX_SWEEPS):
        before = best
        for name, factor in itertools.product(HYPERPARAMETER_DEVIATIONS, (FACTOR, 1.0 / FACTOR)):
            while True:
                trial = replace(best, **{name: getattr(best, name) * factor})
                value = _compute_log_posterior(fit, trial, prior)
                if value <= at + MIN_IMPROVEMENT:
                    break
                best = trial
                at = value
        if best == before:
            break
    return fit if best == start else TableFit(fit.basis, fit.rows, best, fit.theta)


def _compute_log_posterior(fit: TableFit, w: PriorDeviations, prior: PriorDeviations) -> float:
    """Log evidence of hyperparameters, plus their log prior; -inf if the covariance is not positive."""
    total = np.tensordot(list(fit.block_variances(w)), fit.grams, 1)
    total[np.diag_indices(len(total))] += fit.observation_variance(w, fit.rows.weight, fit.excess)
    try:
        L = np.linalg.cholesky(total)
    except np.linalg.LinAlgError:
        return -np.inf
    half = solve_triangular(L, fit.target, lower=True)
    value = -0.5 * float(half @ half) - float(np.log(np.diag(L)).sum())
    for name, deviation in HYPERPARAMETER_DEVIATIONS.items():
        value -= 0.5 * (np.log(getattr(w, name) / getattr(prior, name)) / deviation) ** 2
    return value


class TableFit:
    """Posterior of the table given rows, at least one."""

    def __init__(
        self, basis: TableBasis, rows: AveragedTrials, widths: PriorDeviations, theta: Arrays | None = None
    ):
        self.basis = basis
        self.rows = rows
        self.widths = widths
        self.best = float(rows.loss.min())
        self.excess = rows.loss - self.best
        spread = max(float(np.median(self.excess)), 1e-3 * abs(self.best))
        # Shares of wrong answers are zero for more than half of the plans where the task is easy.
        self.spread = spread if spread > 1e-9 else 1e-3 * float(rows.loss.max()) or 1.0
        self.V = self.observation_variance(widths, rows.weight, self.excess)
        self.variances = self.block_variances(widths)
        independent: ParameterBlocks[np.ndarray | None] = ParameterBlocks(
            *[None] * len(ParameterBlocks._fields)
        )
        self._covariances = independent._replace(cells=basis.cell, scale=basis.alike, decay=basis.alike)
        roots = {"cells": basis.cell_root, "scale": basis.alike_root, "decay": basis.alike_root}
        self._roots = independent._replace(**roots)
        self.theta = self._make_initial_theta() if theta is None else theta
        self._solve()

    def block_variances(self, w: PriorDeviations) -> ParameterBlocks[float]:
        return ParameterBlocks(
            cells=1.0,
            trust=w.trust**2,
            scale=w.scale**2,
            offset=w.offset**2,
            decay=w.decay**2,
            rank_gain=GAIN_SD**2,
            gain=w.gain**2,
            constant=(CONSTANT_SD * self.spread) ** 2,
            units=w.units**2,
        )

    def observation_variance(
        self, w: PriorDeviations, weight: np.ndarray | float, excess: np.ndarray | float
    ) -> np.ndarray:
        misfit = (w.misfit * excess) ** 2
        return np.asarray(((w.noise * self.spread) ** 2 + (1.0 - w.own) * misfit) / weight + w.own * misfit)

    def compute_own_variance(self, excess: np.ndarray | float) -> np.ndarray:
        """Variance of a plan's own deviation from the table: the part of the misfit that is not luck."""
        return np.asarray(self.widths.own * (self.widths.misfit * excess) ** 2)

    def _multiply_by_covariances(self, J: Arrays) -> Arrays:
        parts = zip(self.variances, self._covariances, J, strict=True)
        return ParameterBlocks(*(v * (own if cov is None else own @ cov) for v, cov, own in parts))

    def _compute_gram_matrices(self, J: Arrays) -> np.ndarray:
        """(K, N, N), the rows' covariance by each block at variance 1: products X X', which BLAS does by halves."""
        N = len(self.rows)
        out = np.empty((len(J), N, N))
        for gram, root, own in zip(out, self._roots, J, strict=True):
            X = own if root is None else own @ root
            np.matmul(X, X.T, out=gram)
        return out

    def _make_initial_theta(self) -> Arrays:
        """Zero, but for the overall scales: damage by weighted least squares on the prior's own sum, and gain as if all
        that losses differ by were gain, as far as its width allows: far too small, it has no slope to be found by."""
        G, B, R = self.basis.shape
        sizes = ParameterBlocks(B * R, 1, G, G * B, G, R, G, 1, 1)
        theta = ParameterBlocks(*map(np.zeros, sizes))
        g, w = np.arange(G), 1.0 / self.V
        damage = (np.exp(self.basis.log_damage) * self.basis.live)[g, self.rows.codes[:, 0]].sum(1)
        gain = self.basis.gain[g, self.rows.codes[:, 1]].sum(1)
        y, x, z = (some - (w @ some) / w.sum() for some in (self.rows.loss, damage, gain))
        if (w * x * y).sum() > 0:
            theta.cells[:] = np.clip(np.log((w * x * y).sum() / (w * x * x).sum()), -MAX_LOG, MAX_LOG)
        if np.ptp(z) > ROUNDING * np.abs(gain).max() and y.any():
            far = MAX_DEVIATIONS * self.widths.units
            theta.units[:] = np.clip(0.5 * np.log((w * y * y).sum() / (w * z * z).sum()), -far, far)
        return theta

    def _solve(self) -> None:
        rows = self.rows
        seen = self.excess
        for number in range(NEWTON_STEPS):
            at = self.theta
            f, J = self._linearize(rows.codes, at)
            if number:
                predicted = f - f.min()
                self.excess = np.where(seen > OUTLIER_FACTOR * predicted, seen, predicted)
                self.V = self.observation_variance(self.widths, rows.weight, self.excess)
            SJ = self._multiply_by_covariances(J)
            grams = self._compute_gram_matrices(J)
            target = rows.loss - self.best - f + _multiply_blocks(J, self.theta)
            total = np.tensordot(list(self.variances), grams, 1)
            L = np.linalg.cholesky(total + np.diag(np.maximum(self.V, MIN_VARIANCE * total.max())))
            alpha = cho_solve((L, True), target)
            step = ParameterBlocks(*(s.T @ alpha - th for s, th in zip(SJ, self.theta, strict=True)))
            size = max(float(np.abs(self._compute_eta(step)).max()), abs(float(step.units[0])))
            rate = min(1.0, MAX_STEP / max(size, 1e-12))
            self.theta = ParameterBlocks(*(th + rate * s for th, s in zip(self.theta, step, strict=True)))
            if size < CLOSE:
                break
        self._at = at
        self.grams = grams
        self.L = L
        self.alpha = alpha
        self.target = target

    @cached_property
    def _row_derivatives(self) -> tuple[Arrays, Arrays]:
        """The derivatives J of the rows' losses, and J S. Made anew: of a fit that is only compared they are not kept,
        since with thousands of groups they are nearly all of its memory."""
        _, J = self._linearize(self.rows.codes, self._at)
        return J, self._multiply_by_covariances(J)

    def _compute_eta(self, theta: Arrays) -> np.ndarray:
        """(..., G, B, R) from parameters (..., P_k)."""
        G, B, R = self.basis.shape
        lead = theta.cells.shape[:-1]
        eta = (
            theta.cells.reshape(*lead, 1, B, R)
            + theta.trust[..., None, None] * self.basis.deviation[:, :, None]
        )
        eta = eta + theta.scale[..., :, None, None] + theta.offset.reshape(*lead, G, B)[..., None]
        return eta - theta.decay[..., :, None, None] * self.basis.h

    def _compute_damage(self, theta: Arrays) -> np.ndarray:
        log = self.basis.log_damage[:, :, None] + self._compute_eta(theta)
        return np.where(self.basis.live[:, :, None], np.exp(np.clip(log, -30.0, 12.0)), 0.0)

    def _compute_gain(self, theta: Arrays) -> np.ndarray:
        xi = theta.units[..., None] + theta.rank_gain[..., None, :] + theta.gain[..., :, None]
        return self.basis.gain * np.exp(np.clip(xi, -MAX_LOG, MAX_LOG))

    def _linearize(self, codes: np.ndarray, theta: Arrays) -> tuple[np.ndarray, Arrays]:
        """Loss above `best` (n,) of plans (n, 2, G), and its derivative by each block (n, P_k)."""
        G, B, R = self.basis.shape
        b, r = codes[:, 0], codes[:, 1]
        n = len(codes)
        g = np.arange(G)
        row = np.arange(len(codes))[:, None]
        d = self._compute_damage(theta)[g, b, r]
        w = -self._compute_gain(theta)[g, r]
        cell = np.bincount((row * (B * R) + b * R + r).ravel(), d.ravel(), n * B * R).reshape(n, B * R)
        shared = np.bincount((row * R + r).ravel(), w.ravel(), n * R).reshape(n, R)
        own = np.zeros((n, G * B))
        own[row, g * B + b] = d
        J = ParameterBlocks(
            cells=cell,
            trust=(d * self.basis.deviation[g, b]).sum(1, keepdims=True),
            scale=d,
            offset=own,
            decay=-d * self.basis.h[r],
            rank_gain=shared,
            gain=w,
            constant=np.ones((n, 1)),
            units=w.sum(1, keepdims=True),
        )
        return d.sum(1) + w.sum(1) + theta.constant, J

    def predict(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (M,) and covariance (M, M) of the losses of plans (M, 2, G), linearised at the mode."""
        f, J = self._linearize(codes, self.theta)
        cross = np.asarray(sum(Jk @ s.T for Jk, s in zip(J, self._row_derivatives[1], strict=True)))
        mean = self.best + f - _multiply_blocks(J, self.theta) + cross @ self.alpha
        half = solve_triangular(self.L, cross.T, lower=True)
        return mean, sum(
            s @ Jk.T for Jk, s in zip(J, self._multiply_by_covariances(J), strict=True)
        ) - half.T @ half

    def predict_evaluated(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (N,) of the true losses of the rows' plans: the table's, and each plan's own misfit."""
        luck = np.diag(self.V - self.compute_own_variance(self.excess))
        half = solve_triangular(self.L, luck, lower=True)
        variance = np.diag(luck) - (half * half).sum(0)
        return self.rows.loss - luck @ self.alpha, np.sqrt(np.maximum(variance, 0.0))

    def sample_tables(self, rng: np.random.Generator, width: np.ndarray) -> np.ndarray:
        """Tables (S, G, B, R) from the posterior, each at its width (S,) around the mode (Matheron's rule)."""
        J, SJ = self._row_derivatives
        prior = []
        for v, root, own in zip(self.variances, self._roots, J, strict=True):
            w = rng.standard_normal((len(width), own.shape[1])) * v**0.5
            prior.append(w if root is None else w @ root.T)
        noise = rng.standard_normal((len(width), len(self.rows))) * self.V**0.5
        seen = sum(w @ own.T for w, own in zip(prior, J, strict=True)) + noise
        back = cho_solve((self.L, True), seen.T)
        parts = zip(self.theta, prior, SJ, strict=True)
        theta = ParameterBlocks(*(th + width[:, None] * (w - (s.T @ back).T) for th, w, s in parts))
        return self.compute_tables(theta)

    def compute_tables(self, theta: Arrays) -> np.ndarray:
        """float (..., G, B, R): the tables of parameters (..., P_k); that of `theta` is the posterior's mode."""
        return np.asarray(self._compute_damage(theta) - self._compute_gain(theta)[..., None, :])

    def condition_on(self, codes: np.ndarray) -> TableFit:
        """The fit given that running plans (M, 2, G) come out as predicted."""
        if not len(codes):
            return self
        return TableFit(self.basis, self.rows.append(codes, self.predict(codes)[0]), self.widths, self.theta)


def _multiply_blocks(J: Arrays, theta: Arrays) -> np.ndarray:
    """J theta (n,): derivatives (n, P_k) times parameters (P_k,), summed over the blocks."""
    return np.asarray(sum(Jk @ own for Jk, own in zip(J, theta, strict=True)))
