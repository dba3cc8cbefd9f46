"""A surrogate of recorded losses: a few physical constants, and a Gaussian process on what they miss.

    loss = base - sum_g gain(r_g) / G + rise(D),     D = sum_g t_g,   t_g = a(b_g) d(g, b_g) left(r_g)
    rise(D) = cap (1 - exp(-D / cap)) exp(f)

d mixes a group's own measured damage with what the mean group of its size would have. The constants are fitted by least
squares. f is a Gaussian process with the kernel

    s_1^2 sum_{g: b_g = b'_g} w_g w'_g + s_2^2 sum_{g: b_g = b'_g, r_g = r'_g} w_g w'_g + s_3^2 exp(-hamming / l),

w_g = t_g / D times the root of the number of groups: a table of log-errors of each group's damage, and a residual
for what no table holds. Its widths maximise the marginal likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import least_squares, minimize

from qra_eval.landscapes import measured
from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.space.space import SearchSpace
from qra_search.surrogates.sensitivity_table import flat_sensitivities

FLOOR, SHARE = 0.006, 0.05
"""Error of a loss that the fit of the constants assumes: in nats, and as a share of the rise above the best."""
LEAST_RISE = 0.01
"""A rise below is taken to be this much: the residual is of its logarithm."""
WEAK = 1.5
"""Deviation of the log at which the constants are held to where they start."""
START_WIDTHS = np.log([0.15, 0.1, 0.05, 0.5, 0.03])
"""Where the search of the widths starts: s_1, s_2, s_3, l as a share of the groups, and the error of f."""
WIDTH_PRIOR = 1.5

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of N plans by M, each (N, M): shared damage at equal bits, at equal bits and ranks, and groups that differ."""


@dataclass(frozen=True)
class Fit:
    """What is fitted: level indices (N, G), losses (N,), and the deviation of each loss between seeds (N,)."""

    b: np.ndarray
    r: np.ndarray
    loss: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class Constants:
    """The physical constants; `level` (B,) multiplies the damage of each bit-width."""

    base: float
    gain: float
    gain_rank: float
    power: float
    repair_rank: float
    cap: float
    own: float
    level: np.ndarray


class DamageModel:
    """The surrogate; made by `fit_surrogate`.

    Args:
        damage, pooled: float (G, B), a group's own measured damage and that of the mean group of its size.
    """

    def __init__(self, space: SearchSpace, damage: np.ndarray, pooled: np.ndarray, constants: Constants):
        self.space, self.damage, self.pooled, self.constants = space, damage, pooled, constants
        self.widths = np.exp(START_WIDTHS)
        self._train: Fit | None = None
        self._weights = np.zeros(0)
        self._offsets = np.zeros(0)
        self._rank = np.array(space.ranks, dtype=float)
        self._groups = np.arange(len(space))

    def losses(self, b: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Posterior means (N,) of the loss of plans given by level indices (N, G), (N, G)."""
        floor, rise, share = self._physics(b, r)
        return floor + rise * np.exp(self._residual(b, r, share))

    def additive_table(self) -> np.ndarray:
        """float (G, B, R): each choice's own share of the loss, without the residual."""
        return self._table() - self._gain()[None, None, :] / len(self.space)

    def conditioned(self, data: Fit) -> DamageModel:
        """The model with its residual fitted to the data, at the widths of the largest marginal likelihood."""
        floor, rise, share = self._physics(data.b, data.r)
        seen = np.maximum(data.loss - floor, LEAST_RISE)
        target, noise = np.log(seen / rise), data.noise / seen
        parts = self._parts(data, share)
        model = DamageModel(self.space, self.damage, self.pooled, self.constants)
        model.widths = _best_widths(parts, target, noise)
        model._train, model._weights = data, cho_solve(_factor(parts, model.widths, noise), target)
        model._offsets = model._errors(data, share)
        return model

    def _gain(self) -> np.ndarray:
        """(R,): fall of the loss if all groups have a rank."""
        return self.constants.gain * self._rank / (self._rank + self.constants.gain_rank)

    def _table(self) -> np.ndarray:
        """t (G, B, R)."""
        c = self.constants
        damage = c.level * (c.own * self.damage + (1 - c.own) * self.pooled)
        return damage[:, :, None] * (1.0 + self._rank / c.repair_rank) ** -c.power

    def _physics(self, b: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The loss without damage (N,), the rise (N,), and the groups' shares of the damage (N, G)."""
        c = self.constants
        t = self._table()[self._groups, b, r]
        total = t.sum(1)
        rise = np.maximum(c.cap * -np.expm1(-total / c.cap), LEAST_RISE)
        return c.base - self._gain()[r].mean(1), rise, t / np.maximum(total, 1e-9)[:, None]

    def _residual(self, b: np.ndarray, r: np.ndarray, share: np.ndarray) -> np.ndarray:
        """f (N,): the table's part by look-up, the rest by the distance to every plan of the fit."""
        if self._train is None:
            return np.zeros(len(b))
        of_table = (share * np.sqrt(len(self.space)) * self._offsets[self._groups, b, r]).sum(1)
        differ = self._differ(b, r, self._train.b, self._train.r)
        return of_table + self.widths[2] ** 2 * np.exp(-differ / self.widths[3]) @ self._weights

    def _differ(self, b: np.ndarray, r: np.ndarray, b2: np.ndarray, r2: np.ndarray) -> np.ndarray:
        """Share of the groups (N, M) whose bits or ranks differ."""
        ranks, size = len(self.space.ranks), len(self.space.bits) * len(self.space.ranks)
        same = (_onehot(b * ranks + r, size) @ _onehot(b2 * ranks + r2, size).T).astype(float)
        return 1.0 - same / len(self.space)

    def _parts(self, data: Fit, share: np.ndarray) -> Parts:
        """The kernel's parts among the plans of a fit."""
        ranks, w = len(self.space.ranks), share * np.sqrt(len(self.space))
        bits = _onehot(data.b, len(self.space.bits), w)
        both = _onehot(data.b * ranks + data.r, len(self.space.bits) * ranks, w)
        # Copies: NumPy has another routine for an array by its own transpose, which rounds in another order.
        return bits @ bits.copy().T, both @ both.copy().T, self._differ(data.b, data.r, data.b, data.r)

    def _errors(self, data: Fit, share: np.ndarray) -> np.ndarray:
        """float (G, B, R): what a group's choice adds to f for each unit of its share w."""
        w = share * np.sqrt(len(self.space)) * self._weights[:, None]
        groups = np.broadcast_to(self._groups, data.b.shape)
        table = np.zeros((len(self.space), len(self.space.bits), len(self.space.ranks)))
        np.add.at(table, (groups, data.b, data.r), self.widths[1] ** 2 * w)
        of_bits = np.zeros(table.shape[:2])
        np.add.at(of_bits, (groups, data.b), self.widths[0] ** 2 * w)
        return table + of_bits[:, :, None]


def fit_surrogate(space: SearchSpace, sensitivities: Sensitivities | None, data: Fit) -> DamageModel:
    """The surrogate of these evaluations; without sensitivities every weight is taken to be damaged alike."""
    return _fit_constants(space, sensitivities, data).conditioned(data)


def _fit_constants(space: SearchSpace, sensitivities: Sensitivities | None, data: Fit) -> DamageModel:
    damage = np.maximum((sensitivities or _unknown(space)).bits_damage, 0.0)
    weights = np.array([group.weights for group in space.groups], dtype=float)
    pooled = damage.sum(0) * (weights / weights.sum())[:, None]
    bits = len(space.bits)
    start = np.concatenate([
        np.log([measured.GAIN, measured.GAIN_RANK, measured.REPAIR_POWER, measured.REPAIR_RANK, measured.CAP]),
        [0.0], np.zeros(bits),
    ])  # fmt: skip
    base = float(data.loss.min()) + 0.8 * measured.GAIN

    def model_of(z: np.ndarray) -> DamageModel:
        gain, gain_rank, power, repair_rank, cap = np.exp(z[:5])
        own = 1.0 / (1.0 + np.exp(-z[5]))
        constants = Constants(z[-1], gain, gain_rank, power, repair_rank, cap, own, np.exp(z[6 : 6 + bits]))
        return DamageModel(space, damage, pooled, constants)

    error = np.hypot(FLOOR, data.noise) + SHARE * (data.loss - data.loss.min())

    def residuals(z: np.ndarray) -> np.ndarray:
        floor, rise, _ = model_of(z)._physics(data.b, data.r)
        return np.concatenate([(floor + rise - data.loss) / error, (z[:-1] - start) / WEAK, [z[-1] - base]])

    return model_of(least_squares(residuals, np.append(start, base), loss="soft_l1").x)


def _unknown(space: SearchSpace) -> Sensitivities:
    """Flat sensitivities at the size of real damage: all groups at 2 bits together rise by what was measured."""
    flat = flat_sensitivities(space)
    return replace(flat, bits_damage=flat.bits_damage * measured.DAMAGE_2.sum())


def _factor(parts: Parts, widths: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, bool]:
    """Cholesky factor of the covariance of what was seen of f."""
    bits, both, differ = parts
    covariance = widths[0] ** 2 * bits + widths[1] ** 2 * both + widths[2] ** 2 * np.exp(-differ / widths[3])
    return cho_factor(covariance + np.diag(noise**2 + widths[4] ** 2), lower=True)


def _best_widths(parts: Parts, target: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Widths (5,) of the largest marginal likelihood, with a weak log-normal prior around the start."""

    def cost(z: np.ndarray) -> float:
        factor = _factor(parts, np.exp(z), noise)
        fit = 0.5 * target @ cho_solve(factor, target) + np.log(np.diag(factor[0])).sum()
        return float(fit + 0.5 * np.square((z - START_WIDTHS) / WIDTH_PRIOR).sum())

    bounds = [(s - 4.0, s + 3.0) for s in START_WIDTHS]
    return np.exp(minimize(cost, START_WIDTHS, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60}).x)


def _onehot(index: np.ndarray, size: int, values: np.ndarray | None = None) -> np.ndarray:
    """Indices (N, G) as (N, G * size), with 1 (exact in single precision) or the value (N, G) at each."""
    n, groups = index.shape
    out = np.zeros((n, groups * size), np.float32 if values is None else np.float64)
    columns = np.arange(groups) * size + index
    np.put_along_axis(out, columns, np.ones((n, groups), out.dtype) if values is None else values, axis=1)
    return out
