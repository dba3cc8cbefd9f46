"""The loss as a Bayesian additive table over (group, bits, rank), fitted to the log in closed form.

    loss(plan) = c + sum_g T[g, b_g, r_g] + error
    T[g, b, r] = m[g, b] exp(eta[g, b, r]) - gain[g, r] exp(xi[g, r])

`m` is the prior damage; `eta` and `xi` are linear in Gaussian parameters theta ~ N(0, S): damage is positive and
wrong by factors, so it is Gaussian on a log scale.

    eta = A[b, r] + t (log m[g, b] - mean) + z[g] + o[g, b] - k[g] h(r)
    xi  = u[r] + v[g]

A holds what all groups share (how damage scales with bits and decays with rank), t the trust in the prior, z and k
the scale and rank decay of a group, correlated over groups of one kind and of near depth, o a group's own deviation
at a bit-width. A lower fidelity has a c, an A, an o and a u of its own on top. Gauss-Newton finds the mode; every
step is a Gaussian regression with N x N algebra,

    theta <- S J' (J S J' + V)^-1 (y - f + J theta)

and the last one is the posterior (Laplace). V is diagonal: evaluation noise, and a misfit that grows with the loss
above the best, so that broken plans say little about good ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

from qra_search.surrogates.basis import TableBasis

STEPS = 8
MAX_STEP = 1.5
CLOSE = 0.03
OWN = 1.0
CSD = 1.0
TRUST_SD = 0.3


@dataclass(frozen=True)
class Widths:
    """Hyperparameters: prior deviations on the log scale, and noise and misfit as shares of the losses' spread."""

    scale: float = 0.3
    offset: float = 0.25
    decay: float = 0.3
    gain: float = 0.4
    low: float = 0.15
    noise: float = 0.01
    misfit: float = 0.05


@dataclass(frozen=True)
class Rows:
    """Evaluated plans, replicates averaged.

    Attributes:
        b, r: level indices (N, G).
        low: int (N,), 0 at full fidelity, k at the k-th lower one.
        loss: (N,).
        weight: (N,), full evaluations that each loss is worth: replicates times fidelity.
    """

    b: np.ndarray
    r: np.ndarray
    low: np.ndarray
    loss: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.loss)


class TableFit:
    """Posterior of the table given rows; see the module's docstring."""

    def __init__(self, basis: TableBasis, rows: Rows, widths: Widths, theta: list[np.ndarray] | None = None, lows: int = 0):
        self.basis, self.rows, self.widths = basis, rows, widths
        self.lows = max(lows, int(rows.low.max(initial=0)))
        self.excess = np.zeros(len(rows))
        for k in range(self.lows + 1):
            at = rows.low == k
            if at.any():
                self.excess[at] = rows.loss[at] - rows.loss[at].min()
        full = rows.low == 0
        self.spread = max(float(np.median(self.excess[full])), 1e-9)
        self.origin = float(rows.loss[full].min())
        self.V = self.noise(widths, rows.weight) + self.misfit(widths, self.excess)
        self.variances = self.block_variances(widths)
        self.theta = theta if theta is not None else self._start()
        self._solve()

    # -- blocks of parameters: A, t, z, o, k, u, v, c; then for every lower fidelity A, o, u, c -----------------
    def block_variances(self, w: Widths) -> list[float]:
        """Variance of each block, by which its covariance is multiplied."""
        c = (CSD * self.spread) ** 2
        base = [1.0, TRUST_SD**2, w.scale**2, w.offset**2, w.decay**2, 0.8**2, w.gain**2, c]
        return base + [1.0, w.low**2, 0.5**2, c] * self.lows

    def noise(self, w: Widths, weight) -> np.ndarray:
        return (w.noise * self.spread) ** 2 / weight

    def misfit(self, w: Widths, excess) -> np.ndarray:
        return (w.misfit * excess) ** 2

    def _start(self) -> list[np.ndarray]:
        G, B, R = self.basis.shape
        sizes = [B * R, 1, G, G * B, G, R, G, 1] + [B * R, G * B, R, 1] * self.lows
        theta = [np.zeros(n) for n in sizes]
        rows = self.rows
        full = rows.low == 0
        d = (np.exp(self.basis.mean_log + self.basis.deviation) * self.basis.live)[np.arange(G), rows.b[full]].sum(1)
        w = 1 / self.V[full]
        y = rows.loss[full]
        d0, y0 = d - (w @ d) / w.sum(), y - (w @ y) / w.sum()
        slope = (w * d0 * y0).sum() / max((w * d0 * d0).sum(), 1e-300)
        theta[0] += float(np.clip(np.log(max(slope, 1e-3)), -4, 4))
        return theta

    def _cov(self, k: int) -> np.ndarray | None:
        if k == 0:
            return self.basis.cell
        if k in (2, 4):
            return self.basis.alike
        if k >= 8 and k % 4 == 0:
            return self.basis.low_cell
        return None

    def _times_cov(self, k: int, J: np.ndarray) -> np.ndarray:
        cov = self._cov(k)
        return J if cov is None else J @ cov

    def _eta(self, theta, low: int = 0) -> np.ndarray:
        """(..., G, B, R) from parameter blocks (..., P_k)."""
        G, B, R = self.basis.shape
        A, t, z, o, k = theta[:5]
        lead = A.shape[:-1]
        if low:
            A = A + theta[4 + 4 * low]
            o = o + theta[5 + 4 * low]
        eta = A.reshape(*lead, 1, B, R) + t[..., None, None] * self.basis.deviation[:, :, None]
        eta = eta + z[..., :, None, None] + o.reshape(*lead, G, B)[..., None]
        return eta - k[..., :, None, None] * self.basis.h

    def damage(self, theta=None, low: int = 0) -> np.ndarray:
        """(..., G, B, R)."""
        theta = self.theta if theta is None else theta
        log = (self.basis.mean_log + self.basis.deviation)[:, :, None] + self._eta(theta, low)
        return np.where(self.basis.live[:, :, None], np.exp(np.clip(log, -30, 12)), 0.0)

    def gains(self, theta=None, low: int = 0) -> np.ndarray:
        """(..., G, R)."""
        theta = self.theta if theta is None else theta
        u = theta[5] + theta[6 + 4 * low] if low else theta[5]
        return self.basis.gain * np.exp(np.clip(u[..., None, :] + theta[6][..., :, None], -8, 8))

    def table(self, theta=None, low: int = 0) -> np.ndarray:
        """(..., G, B, R), loss that each choice adds; at the mode, or for other parameters."""
        return self.damage(theta, low) - self.gains(theta, low)[..., :, None, :]

    def _jacobian(self, b, r, low) -> tuple[np.ndarray, list[np.ndarray]]:
        """Sum of the table (n,) and its derivatives by each block (n, P_k), at the current parameters."""
        G, B, R = self.basis.shape
        n, g = len(b), np.arange(G)
        damage = np.stack([self.damage(low=k) for k in range(self.lows + 1)])
        gains = np.stack([self.gains(low=k) for k in range(self.lows + 1)])
        d = damage[low[:, None], g, b, r]
        w = -gains[low[:, None], g, r]
        row = np.arange(n)[:, None]
        cell = np.bincount((row * (B * R) + b * R + r).ravel(), d.ravel(), n * B * R).reshape(n, B * R)
        shared = np.bincount((row * R + r).ravel(), w.ravel(), n * R).reshape(n, R)
        own = np.zeros((n, G * B))
        own[row, g * B + b] = d
        t = (d * self.basis.deviation[g, b]).sum(1, keepdims=True)
        J = [cell, t, d, own, -d * self.basis.h[r], shared, w, np.ones((n, 1))]
        for k in range(1, self.lows + 1):
            at = (low == k).astype(float)[:, None]
            J += [cell * at, own * at, shared * at, at]
        return d.sum(1) + w.sum(1), J

    def _solve(self) -> None:
        rows = self.rows
        for _ in range(STEPS):
            f, J = self._jacobian(rows.b, rows.r, rows.low)
            SJ = [v * self._times_cov(k, Jk) for k, (v, Jk) in enumerate(zip(self.variances, J, strict=True))]
            grams = [a @ b.T for a, b in zip(SJ, J, strict=True)]
            constant = self.theta[7][0]
            linear = sum(Jk @ th for Jk, th in zip(J, self.theta, strict=True))
            low_c = sum(J[11 + 4 * i][:, 0] * self.theta[11 + 4 * i][0] for i in range(self.lows))
            target = rows.loss - self.origin - (f + constant + low_c) + linear
            L = np.linalg.cholesky(sum(grams) + np.diag(self.V))
            alpha = cho_solve((L, True), target)
            step = [s.T @ alpha - th for s, th in zip(SJ, self.theta, strict=True)]
            size = max(float(np.abs(self._eta(step, k)).max()) for k in range(self.lows + 1))
            rate = min(1.0, MAX_STEP / max(size, 1e-12))
            self.theta = [th + rate * s for th, s in zip(self.theta, step, strict=True)]
            if size < CLOSE:
                break
        self.J, self.SJ, self.grams, self.L, self.alpha, self.target = J, SJ, grams, L, alpha, target

    # -- what it says -------------------------------------------------------------------------------------------
    def joint(self, b, r, low) -> tuple[np.ndarray, np.ndarray]:
        """Mean (M,) and covariance (M, M) of the losses of plans (M, G) at fidelities (M,), linearised at the mode."""
        f, J = self._jacobian(b, r, low)
        cross = sum(Jk @ s.T for Jk, s in zip(J, self.SJ, strict=True))
        constants = [7, *range(11, 8 + 4 * self.lows, 4)]
        inner = sum(J[k] @ self.theta[k] for k in range(len(J)) if k not in constants)
        mean = self.origin + f - inner + cross @ self.alpha
        A = solve_triangular(self.L, cross.T, lower=True)
        cov = sum(v * self._times_cov(k, Jk) @ Jk.T for k, (v, Jk) in enumerate(zip(self.variances, J, strict=True)))
        return mean, cov - A.T @ A

    def at_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and deviation (N,) of the true losses of the rows: the table's and each plan's own misfit."""
        noise = self.V - OWN * self.misfit(self.widths, self.excess)
        mean = self.rows.loss - noise * self.alpha
        half = solve_triangular(self.L, np.eye(len(self.rows)), lower=True)
        var = noise - noise**2 * (half * half).sum(0)
        return mean, np.sqrt(np.maximum(var, 0.0))

    def draws(self, rng: np.random.Generator, width: np.ndarray) -> np.ndarray:
        """Tables (S, G, B, R) at full fidelity from the posterior, each at its width (S,) around the mode."""
        count = len(width)
        prior = []
        for k, (v, J) in enumerate(zip(self.variances, self.J, strict=True)):
            w = rng.standard_normal((count, J.shape[1])) * v**0.5
            cov = self._cov(k)
            prior.append(w if cov is None else w @ self.basis.root(cov).T)
        noise = rng.standard_normal((count, len(self.rows))) * self.V**0.5
        back = cho_solve((self.L, True), (sum(w @ J.T for w, J in zip(prior, self.J, strict=True)) + noise).T)
        theta = [
            th + width[:, None] * (w - (s.T @ back).T) for th, w, s in zip(self.theta, prior, self.SJ, strict=True)
        ]
        return self.table(theta)

    def given(self, b, r, low, weight) -> TableFit:
        """The fit given that running plans come out as predicted."""
        mean, _ = self.joint(b, r, low)
        old = self.rows
        pairs = ((old.b, b), (old.r, r), (old.low, low), (old.loss, mean), (old.weight, weight))
        return TableFit(self.basis, Rows(*(np.concatenate(p) for p in pairs)), self.widths, self.theta, self.lows)

    def refined(self, sweeps: int) -> TableFit:
        """The fit with hyperparameters improved by coordinate steps of the evidence, linearised at this mode."""
        unit = [g / v for g, v in zip(self.grams, self.variances, strict=True)]

        def evidence(w: Widths) -> float:
            V = self.noise(w, self.rows.weight) + self.misfit(w, self.excess)
            K = sum(v * g for v, g in zip(self.block_variances(w), unit, strict=True))
            try:
                L = np.linalg.cholesky(K + np.diag(V))
            except np.linalg.LinAlgError:
                return -np.inf
            half = solve_triangular(L, self.target, lower=True)
            return float(-0.5 * half @ half - np.log(np.diag(L)).sum() + log_prior(w))

        w, at = self.widths, evidence(self.widths)
        names = ["noise", "misfit", "scale", "offset", "decay", "gain"] + ["low"] * (self.lows > 0)
        for _ in range(sweeps):
            before = w
            for name in names:
                for factor in (2.0, 0.5):
                    moved = False
                    while (value := evidence(trial := replace(w, **{name: getattr(w, name) * factor}))) > at:
                        w, at, moved = trial, value, True
                    if moved:
                        break
            if w == before:
                break
        return self if w == self.widths else TableFit(self.basis, self.rows, w, self.theta, self.lows)


def log_prior(w: Widths) -> float:
    """Hyperparameters are known to a factor of about two."""
    default, total = Widths(), 0.0
    for name in ("noise", "misfit", "scale", "offset", "decay", "gain", "low"):
        total -= 0.5 * (np.log(getattr(w, name) / getattr(default, name)) / (1.5 if name == "noise" else 0.7)) ** 2
    return total
