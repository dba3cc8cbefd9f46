"""The loss as a Bayesian additive table over (group, bits, rank), fitted to the log in closed form.

    loss(plan) = c + sum_g T[g, b_g, r_g] + error
    T[g, b, r] = m[g, b] exp(eta[g, b, r]) - gain[g, r] exp(xi[g, r])

`m` is the prior damage, drawn towards the mean over groups where trust is below 1; `eta` and `xi` are linear in
Gaussian parameters theta ~ N(0, S): damage is positive and wrong by factors, so it is Gaussian on a log scale.

    eta = A[b, r] + t (log m[g, b] - mean) + z[g] + o[g, b] - k[g] h(r)        h(r) = log(1 + r / median rank), centred

A holds what all groups share (how the damage scales with bits and decays with rank), t the trust in the prior,
z and k (scale and rank decay of a group) are correlated over groups of one kind and of near depth, o is a group's
own deviation at a bit-width. Gauss-Newton finds the mode: every step is a Gaussian regression with N x N algebra,

    theta <- S J' (J S J' + V)^-1 (y - f + J theta)

and the last step's regression is the posterior (Laplace). V is diagonal: evaluation noise, and a misfit that
grows with the loss above the best, so that broken plans say little about good ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

from qra_search.evaluation import Prior
from qra_search.space import SearchSpace
from qra_search.strategies.additive import flat_prior

FLOOR = 0.05
"""Prior damage below this share of the bit-width's mean is taken to be this: near zero by luck is not zero."""
STEPS = 8
MAX_STEP = 1.5
DEPTH_LENGTH = 0.15
"""Length over which groups of near depth are alike, as a share of the model's depth."""


@dataclass(frozen=True)
class Widths:
    """Hyperparameters: prior deviations on the log scale, and the noise as shares of the losses' spread."""

    trust: float = 1.0
    scale: float = 0.3
    offset: float = 0.25
    decay: float = 0.3
    gain: float = 0.4
    noise: float = 0.01
    misfit: float = 0.05


def log_prior(w: Widths) -> float:
    """Hyperparameters are known to a factor of about two."""
    default, total = Widths(), 0.0
    for name, sd in (("noise", 1.5), ("misfit", 0.7), ("scale", 0.7), ("offset", 0.7), ("decay", 0.7), ("gain", 0.7)):
        total -= 0.5 * (np.log(getattr(w, name) / getattr(default, name)) / sd) ** 2
    return total


class TableBasis:
    """What the model knows of a space and its prior before any evaluation."""

    def __init__(self, space: SearchSpace, prior: Prior | None):
        prior = prior or flat_prior(space)
        self.shape = (len(space), len(space.bits), len(space.ranks))
        damage = np.maximum(prior.bits_damage, 0.0)
        mean = damage.mean(0)
        self.live = np.broadcast_to(mean > 0, damage.shape)
        log = np.log(np.where(self.live, np.maximum(damage, FLOOR * mean), 1.0))
        self.mean_log = log.mean(0)
        self.deviation = log - self.mean_log
        ranks = np.asarray(space.ranks, float)
        h = np.log1p(ranks / max(float(np.median(ranks)), 1.0))
        self.h = h - h.mean()
        gain = np.maximum(prior.rank_gain, 0.0)
        gain = gain - gain.min(1, keepdims=True)
        if not gain.any():
            gain = np.broadcast_to((ranks - ranks.min()) / max(np.ptp(ranks), 1.0), gain.shape) * mean.max() * 0.01
        self.gain = 0.5 * gain + 0.5 * gain.mean(0)
        self.alike = likeness(space)
        self.alike_root = np.linalg.cholesky(self.alike + 1e-9 * np.eye(len(space)))
        self.cell = self._cells()
        self.cell_root = np.linalg.cholesky(self.cell + 1e-9 * np.eye(len(self.cell)))

    def _cells(self) -> np.ndarray:
        """Covariance (B R, B R) of what all groups share in each (bits, rank)."""
        _, B, R = self.shape
        one_b, one_r, h = np.eye(B), np.eye(R), np.outer(self.h, self.h)
        full_b, full_r = np.ones((B, B)), np.ones((R, R))
        return (
            1.5**2 * np.kron(full_b, full_r)
            + 0.5**2 * np.kron(one_b, full_r)
            + 0.4**2 * np.kron(full_b, h)
            + 0.2**2 * np.kron(one_b, h)
            + 0.05**2 * np.kron(one_b, one_r)
        )


def likeness(space: SearchSpace) -> np.ndarray:
    """Correlation (G, G) of groups: their own part, and what they share with their kind and their depth."""
    groups = space.groups
    total = 0.6 * np.eye(len(groups))
    kinds = np.array([g.kind for g in groups])
    same = (kinds[:, None] == kinds[None, :]).astype(float)
    many = len(set(kinds.tolist())) > 1
    if all(g.depth is not None for g in groups):
        depth = np.array([float(g.depth or 0) for g in groups])
        near = np.exp(-0.5 * ((depth[:, None] - depth[None, :]) / (DEPTH_LENGTH * max(np.ptp(depth), 1.0))) ** 2)
        total += 0.2 * near + 0.2 * near * same
    if many:
        total += 0.5 * same
    return total


class TableFit:
    """Posterior of the table given losses of some plans.

    Args:
        b, r: level indices (N, G) of the plans.
        loss: (N,).
        widths: hyperparameters.
        start: theta to start from.
    """

    def __init__(self, basis: TableBasis, b, r, loss, count, widths: Widths, start: list[np.ndarray] | None = None):
        self.basis, self.b, self.r, self.loss, self.count, self.widths = basis, b, r, loss, count, widths
        G, B, R = basis.shape
        self.rows = np.arange(G)
        self.log_m = basis.mean_log + widths.trust * basis.deviation
        excess = loss - loss.min()
        self.spread = max(float(np.median(excess)), 1e-9)
        self.excess = excess
        self.V = self._noise(widths)
        self.c_var = (10 * max(float(np.ptp(loss)), self.spread)) ** 2
        self.variances = self._variances(widths)
        if start is None:
            start = [np.zeros(B * R), np.zeros(1), np.zeros(G), np.zeros(G * B), np.zeros(G), np.zeros(R), np.zeros(G)]
            start[0] += self._first_scale()
        self.theta = start
        self._solve()

    def _noise(self, w: Widths) -> np.ndarray:
        return (w.noise * self.spread) ** 2 / self.count + (w.misfit * self.excess) ** 2

    def refine(self, sweeps: int) -> TableFit:
        """The fit with hyperparameters improved by coordinate steps of the evidence, linearised at this mode."""
        if not sweeps:
            return self
        unit = [g / max(v, 1e-12) for g, v in zip(self.grams, self.variances)]

        def evidence(w):
            K = sum(v * g for v, g in zip(self._variances(w), unit)) + self.c_var
            try:
                L = np.linalg.cholesky(K + np.diag(self._noise(w)))
            except np.linalg.LinAlgError:
                return -np.inf
            half = solve_triangular(L, self.target, lower=True)
            return float(-0.5 * half @ half - np.log(np.diag(L)).sum() + log_prior(w))

        w, at = self.widths, evidence(self.widths)
        for _ in range(sweeps):
            for name in ("noise", "misfit", "scale", "offset", "decay", "gain"):
                for factor in (2.0, 0.5):
                    moved = False
                    while True:
                        trial = replace(w, **{name: getattr(w, name) * factor})
                        value = evidence(trial)
                        if value <= at:
                            break
                        w, at, moved = trial, value, True
                    if moved:
                        break
        if w == self.widths:
            return self
        return TableFit(self.basis, self.b, self.r, self.loss, self.count, w, self.theta)

    def with_pending(self, b, r) -> TableFit:
        """The fit given that running plans come out as predicted."""
        mean, _ = self.predict(b, r)
        return TableFit(
            self.basis, np.concatenate([self.b, b]), np.concatenate([self.r, r]), np.concatenate([self.loss, mean]),
            np.concatenate([self.count, np.ones(len(b))]), self.widths, self.theta,
        )  # fmt: skip

    def at_data(self) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and deviation of the true loss of the fitted plans: the table's and the plan's own misfit."""
        K = sum(self.grams) + self.c_var
        own = (self.widths.misfit * self.excess) ** 2
        # y = table + misfit + noise: what is not noise is believed.
        noise = self.V - own
        mean = self.loss - noise * self.alpha
        inv = cho_solve((self.L, True), np.diag(noise))
        var = noise - (noise * np.diag(inv))
        return mean, np.sqrt(np.maximum(var, 0))

    # -- the model ---------------------------------------------------------------------------
    def _variances(self, w: Widths) -> list[float]:
        return [1.0, 0.3**2, w.scale**2, w.offset**2, w.decay**2, 0.8**2, w.gain**2]

    def _eta(self, theta) -> np.ndarray:
        """(..., G, B, R) from parameter blocks (..., P_k)."""
        G, B, R = self.basis.shape
        A, t, z, o, k, _, _ = theta
        lead = A.shape[:-1]
        eta = A.reshape(*lead, 1, B, R) + t[..., None, None] * self.basis.deviation[:, :, None]
        eta = eta + z[..., :, None, None] + o.reshape(*lead, G, B)[..., None]
        return eta - k[..., :, None, None] * self.basis.h

    def damage(self, theta) -> np.ndarray:
        """(..., G, B, R)."""
        return np.where(
            self.basis.live[:, :, None], np.exp(np.clip(self.log_m[:, :, None] + self._eta(theta), -30, 12)), 0.0
        )

    def gains(self, theta) -> np.ndarray:
        """(..., G, R)."""
        return self.basis.gain * np.exp(np.clip(theta[5][..., None, :] + theta[6][..., :, None], -8, 8))

    def table(self, theta=None) -> np.ndarray:
        theta = self.theta if theta is None else theta
        return self.damage(theta) - self.gains(theta)[..., :, None, :]

    def _jacobian(self, b, r, damage, gains) -> list[np.ndarray]:
        G, B, R = self.basis.shape
        n = len(b)
        d = damage[self.rows, b, r]
        g = gains[self.rows, r]
        cell = np.zeros((n, B * R))
        rows = np.repeat(np.arange(n), G)
        np.add.at(cell, (rows, (b * R + r).ravel()), d.ravel())
        own = np.zeros((n, G, B))
        own[np.arange(n)[:, None], self.rows[None, :], b] = d
        shared = np.zeros((n, R))
        np.add.at(shared, (rows, r.ravel()), -g.ravel())
        t = (d * self.basis.deviation[self.rows, b]).sum(1, keepdims=True)
        return [cell, t, d, own.reshape(n, -1), -d * self.basis.h[r], shared, -g]

    def _cov(self, k: int, J: np.ndarray) -> np.ndarray:
        """J_k S_k with unit variance."""
        if k == 0:
            return J @ self.basis.cell
        if k in (2, 4):
            return J @ self.basis.alike
        return J

    def _solve(self) -> None:
        y, V = self.loss, self.V
        n = len(y)
        for _ in range(STEPS):
            damage, gains = self.damage(self.theta), self.gains(self.theta)
            J = self._jacobian(self.b, self.r, damage, gains)
            SJ = [v * self._cov(k, Jk) for k, (v, Jk) in enumerate(zip(self.variances, J))]
            self.grams = [a @ b.T for a, b in zip(SJ, J)]
            K = sum(self.grams) + self.c_var
            f = J[2].sum(1) + J[6].sum(1)
            target = y - f + sum(Jk @ th for Jk, th in zip(J, self.theta))
            L = np.linalg.cholesky(K + np.diag(V))
            alpha = cho_solve((L, True), target)
            new = [s.T @ alpha for s in SJ]
            step = [a - b for a, b in zip(new, self.theta)]
            size = float(np.abs(self._eta(step)).max())
            rate = min(1.0, MAX_STEP / max(size, 1e-12))
            self.theta = [th + rate * s for th, s in zip(self.theta, step)]
            if size < 0.02:
                break
        self.J, self.SJ, self.L, self.alpha, self.target = J, SJ, L, alpha, target
        self.c = float(self.c_var * alpha.sum())
        self.evidence = float(-0.5 * target @ alpha - np.log(np.diag(L)).sum())

    def _first_scale(self) -> float:
        d = (np.exp(self.log_m) * self.basis.live)[self.rows, self.b].sum(1)
        w = 1 / self.V
        d0, y0 = d - (w @ d) / w.sum(), self.loss - (w @ self.loss) / w.sum()
        slope = (w * d0 * y0).sum() / max((w * d0 * d0).sum(), 1e-300)
        return float(np.clip(np.log(max(slope, 1e-3)), -4, 4))

    # -- what it says -------------------------------------------------------------------------
    def predict(self, b, r) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance (M,) of the loss of plans (M, G), linearised at the mode."""
        damage, gains = self.damage(self.theta), self.gains(self.theta)
        J = self._jacobian(b, r, damage, gains)
        cross = sum(Jk @ s.T for Jk, s in zip(J, self.SJ)) + self.c_var
        f = J[2].sum(1) + J[6].sum(1)
        base = f - sum(Jk @ th for Jk, th in zip(J, self.theta))
        mean = base + cross @ self.alpha
        A = solve_triangular(self.L, cross.T, lower=True)
        own = sum(v * (self._cov(k, Jk) * Jk).sum(1) for k, (v, Jk) in enumerate(zip(self.variances, J)))
        return mean, np.maximum(own + self.c_var - (A * A).sum(0), 1e-18)

    def draws(self, rng: np.random.Generator, count: int, width: np.ndarray) -> np.ndarray:
        """Tables (S, G, B, R) from the posterior, each at its width (S,) around the mode."""
        n = len(self.loss)
        prior = []
        for k, (v, J) in enumerate(zip(self.variances, self.J)):
            w = rng.standard_normal((count, J.shape[1])) * v**0.5
            if k == 0:
                w = w @ self.basis.cell_root.T
            elif k in (2, 4):
                w = w @ self.basis.alike_root.T
            prior.append(w)
        noise = rng.standard_normal((count, n)) * self.V**0.5 + rng.standard_normal((count, 1)) * self.c_var**0.5
        seen = sum(w @ J.T for w, J in zip(prior, self.J)) + noise
        back = cho_solve((self.L, True), seen.T)
        theta = [th + width[:, None] * (w - (s.T @ back).T) for th, w, s in zip(self.theta, prior, self.SJ)]
        return self.table(theta)
