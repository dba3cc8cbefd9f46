"""What a table of losses is made of before anything is evaluated: prior damage, rank curves, likeness of groups."""

from __future__ import annotations

import numpy as np

from qra_search.evaluation.prior import Prior
from qra_search.space.space import SearchSpace
from qra_search.surrogates.prior_table import flat_prior

FLOOR = 0.05
"""Prior damage below this share of the bit-width's mean is taken to be this: near zero by luck is not zero."""
DEPTH_LENGTH = 0.15
"""Length over which groups of near depth are alike, as a share of the model's depth."""
CELLS = (4.0, 0.2, 0.4, 0.2, 0.05)
"""Deviations of log damage shared by all groups: overall (its units may be any), by bits, rank decay, rank decay by
bits, by (bits, rank)."""


class TableBasis:
    """Log damage, rank curves and covariances of a space and its prior.

    Attributes:
        shape: (G, B, R).
        live: bool (G, B), where a bit-width does damage at all (16 bits do none).
        log_damage: (G, B); `deviation` (G, B) is its distance from the mean over groups.
        h: (R,), log(1 + rank / median rank), centred: damage falls as exp(-k h).
        gain: (G, R), prior fall of the loss by rank, half of it the mean over groups.
        alike: (G, G), correlation of groups.
        cell: (B R, B R), covariance of log damage shared by all groups.
    """

    def __init__(self, space: SearchSpace, prior: Prior | None, *, alike: bool = True):
        prior = prior or flat_prior(space)
        self.shape = (len(space), len(space.bits), len(space.ranks))
        damage = np.maximum(prior.bits_damage, 0.0)
        mean = damage.mean(0)
        self.live = np.broadcast_to(mean > 0, damage.shape)
        log = np.log(np.where(self.live, np.maximum(damage, FLOOR * mean), 1.0))
        self.deviation = log - log.mean(0)
        self.log_damage = log
        ranks = np.asarray(space.ranks, float)
        h = np.log1p(ranks / max(float(np.median(ranks)), 1.0))
        self.h = h - h.mean()
        gain = np.maximum(prior.rank_gain, 0.0)
        gain = gain - gain.min(1, keepdims=True)
        if not gain.any() and len(ranks) > 1:
            gain = np.broadcast_to((h - h.min()) / np.ptp(h), gain.shape) * mean.max() * 0.01
        self.gain = 0.5 * gain + 0.5 * gain.mean(0)
        self.alike = likeness(space) if alike else np.eye(len(space))
        self.cell = self._cells(CELLS)
        self._roots: dict[int, np.ndarray] = {}

    def root(self, cov: np.ndarray) -> np.ndarray:
        """Cholesky factor of one of the covariances."""
        if id(cov) not in self._roots:
            self._roots[id(cov)] = np.linalg.cholesky(cov + 1e-9 * np.eye(len(cov)))
        return self._roots[id(cov)]

    def _cells(self, deviations: tuple[float, ...]) -> np.ndarray:
        _, B, R = self.shape
        h = np.outer(self.h, self.h)
        parts = (
            np.kron(np.ones((B, B)), np.ones((R, R))),
            np.kron(np.eye(B), np.ones((R, R))),
            np.kron(np.ones((B, B)), h),
            np.kron(np.eye(B), h),
            np.eye(B * R),
        )
        return np.asarray(sum(d * d * part for d, part in zip(deviations, parts, strict=True)))


def likeness(space: SearchSpace) -> np.ndarray:
    """Correlation (G, G) of groups: their own part, and what they share with their kind and their depth."""
    groups = space.groups
    total = 0.6 * np.eye(len(groups))
    kinds = np.array([g.kind for g in groups])
    same = (kinds[:, None] == kinds[None, :]).astype(float)
    if all(g.depth is not None for g in groups):
        depth = np.array([float(g.depth or 0) for g in groups])
        near = np.exp(-0.5 * ((depth[:, None] - depth[None, :]) / (DEPTH_LENGTH * max(np.ptp(depth), 1.0))) ** 2)
        total += 0.2 * near + 0.2 * near * same
    if len(set(kinds.tolist())) > 1:
        total += 0.5 * same
    return total
