"""What a table of losses is made of before anything is evaluated: prior damage, rank curves, likeness of groups."""

from __future__ import annotations

import numpy as np

from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.space.space import SearchSpace
from qra_search.surrogates.likeness import Dense, covariance
from qra_search.surrogates.prior_table import flat_prior

FLOOR = 0.05
"""Sensitivities damage below this share of the bit-width's mean is taken to be this: near zero by luck is not zero."""
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
        alike: correlation of groups (G, G); None: they have nothing in common.
        cell: covariance (B R, B R) of log damage shared by all groups.
    """

    def __init__(self, space: SearchSpace, sensitivities: Sensitivities | None, *, alike: bool = True):
        sensitivities = sensitivities or flat_prior(space)
        self.shape = (len(space), len(space.bits), len(space.ranks))
        damage = np.maximum(sensitivities.bits_damage, 0.0)
        mean = damage.mean(0)
        self.live = np.broadcast_to(mean > 0, damage.shape)
        log = np.log(np.where(self.live, np.maximum(damage, FLOOR * mean), 1.0))
        self.deviation = log - log.mean(0)
        self.log_damage = log
        ranks = np.asarray(space.ranks, float)
        usual = np.isin(space.ranks, space.uniform_ranks)  # 0 may be there for groups without adapters alone
        usual = usual if usual.any() else np.ones(len(ranks), bool)
        h = np.log1p(ranks / max(float(np.median(ranks[usual])), 1.0))
        self.h = h - h[usual].mean()
        gain = np.maximum(sensitivities.rank_gain, 0.0)
        gain = np.maximum(gain - np.where(space.ranks_allowed, gain, np.inf).min(1, keepdims=True), 0.0)
        if not gain.any() and len(ranks) > 1:
            gain = np.broadcast_to((h - h.min()) / np.ptp(h), gain.shape) * mean.max() * 0.01
        self.gain = 0.5 * gain + 0.5 * gain.mean(0)
        self.alike = covariance(space, alike=alike)
        self.cell = Dense(self._cells(CELLS))

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
