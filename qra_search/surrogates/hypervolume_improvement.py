"""Expected hypervolume improvement in closed form, where one objective is a Gaussian loss and the other exact bytes.

The improvement of a plan is a sum of expected improvements over strips of memory (Olofsson et al. 2019): between
two neighbouring sizes the best loss known so far is a constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import erfcx, log_ndtr, logsumexp

LOG_SQRT_2PI = 0.5 * np.log(2 * np.pi)
TAIL = -1e3
"""Below so many deviations the asymptotic series of log EI is exact to double precision, the formula is not."""


@dataclass(frozen=True)
class Strips:
    """The loss to improve on, over strips of memory.

    Attributes:
        start: float (S,), bytes at which each strip begins, ascending.
        end: float (S,), bytes at which it ends; equal to `start` for a budget that counts as a point.
        best: float (S,), loss to improve on in each strip, not rising.
    """

    start: np.ndarray
    end: np.ndarray
    best: np.ndarray

    @classmethod
    def of_front(cls, losses: np.ndarray, sizes: np.ndarray, reference: tuple[float, float]) -> Strips:
        """Strips between the sizes of known plans, up to a reference point (loss, bytes).

        Args:
            losses: float (N,), believed losses; posterior means, so that no lucky draw counts as the best.
            sizes: (N,), their bytes.
        """
        worst, most = float(reference[0]), float(reference[1])
        inside = np.flatnonzero(sizes < most)
        order = inside[np.lexsort((losses[inside], sizes[inside]))]
        best = np.minimum(np.minimum.accumulate(np.append(worst, losses[order])), worst)
        edges = np.concatenate([[-np.inf], np.asarray(sizes, dtype=float)[order], [most]])
        keep = edges[1:] > edges[:-1]
        return cls(edges[:-1][keep], edges[1:][keep], best[keep])

    @classmethod
    def of_budgets(cls, losses: np.ndarray, sizes: np.ndarray, budgets: tuple[int, ...], worst: float) -> Strips:
        """Only the named budgets count: one point each, with the best loss that fits it."""
        ends = np.asarray(budgets, dtype=float)
        best = np.array([min([worst, *losses[sizes <= b]]) for b in budgets])
        return cls(ends, ends, best)

    def log_improvement(self, mean: np.ndarray, std: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Log of the expected hypervolume improvement, float (M,); -inf if a plan is too large to count.

        Args:
            mean, std: float (M,), posterior of the loss of the plans.
            sizes: (M,), their exact bytes.
        """
        sizes = np.asarray(sizes, dtype=float)[:, None]
        points = self.start == self.end
        width = np.where(points, sizes <= self.end, np.maximum(self.end - np.maximum(self.start, sizes), 0.0))
        with np.errstate(divide="ignore"):
            log_width = np.log(width)
        gains = log_expected_improvement(mean[:, None], std[:, None], self.best)
        return logsumexp(gains + log_width, axis=1)


def log_expected_improvement(mean: np.ndarray, std: np.ndarray, best: np.ndarray) -> np.ndarray:
    """log E[max(0, best - y)] for y ~ N(mean, std^2), elementwise and stable far below the best (Ament et al. 2023).

    >>> float(np.round(np.exp(log_expected_improvement(np.array(0.0), np.array(1.0), np.array(0.0))), 6))
    0.398942
    """
    std = np.maximum(std, 1e-300)
    return np.log(std) + _log_h((best - mean) / std)


def _log_h(u: np.ndarray) -> np.ndarray:
    """log(phi(u) + u Phi(u)), the log of a unit Gaussian's expected improvement."""
    u = np.asarray(u, dtype=float)
    log_phi = -0.5 * u * u - LOG_SQRT_2PI
    near = np.maximum(u, -1.0)
    upper = np.log(np.exp(-0.5 * near * near - LOG_SQRT_2PI) + near * np.exp(log_ndtr(near)))
    middle = np.clip(u, TAIL, -1.0)
    lower = log_phi + np.log1p(np.sqrt(np.pi / 2) * middle * erfcx(-middle / np.sqrt(2)))
    far = np.minimum(u, TAIL)
    tail = log_phi - 2 * np.log(-far) + np.log1p(-3.0 / far**2)
    return np.where(u > -1.0, upper, np.where(u > TAIL, lower, tail))
