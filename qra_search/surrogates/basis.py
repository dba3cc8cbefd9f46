"""What a table of losses is made of before it is fitted: its parameters and rows, prior damage, rank curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from qra_search.allocate.solve import ensure_sensitivities
from qra_search.schemas import Sensitivities
from qra_search.space.space import SearchSpace

DAMAGE_FLOOR = 0.05
"""Measured damage below this share of the level's mean is taken to be this: near zero by luck is not zero."""
SHARED_DEVIATIONS = (4.0, 0.2, 0.4, 0.2, 0.05)
"""Deviations of log damage shared by all groups: overall (its units may be any), by bits, rank decay, rank decay by
bits, by (bits, rank)."""
OWN_VARIANCE = 0.6
DEPTH_VARIANCE = 0.2
KIND_DEPTH_VARIANCE = 0.2
KIND_VARIANCE = 0.5
"""Variance that is a group's own, shared by groups of near depth, by those of near depth and one kind, by one kind."""
DEPTH_LENGTHSCALE = 0.15
"""Length over which groups of near depth are alike, as a share of the model's depth."""
JITTER = 1e-9
MAX_GROUPS = 1024
"""Groups up to which a table is fitted: the Cholesky factor of their correlations grows with their cube."""

Element = TypeVar("Element")


class ParameterBlocks(NamedTuple, Generic[Element]):
    """Something for each block of the parameters theta: their values, derivatives, variances.

    Attributes:
        cells: A, log damage that all groups share, by bits and rank; B R parameters.
        trust: t, how far the sensitivities' deviations between groups are trusted; 1.
        scale: z, log damage of a group; G, alike for groups of one kind and of near depth.
        offset: o, log damage of a group at a level; G B.
        decay: k, how fast a group's damage falls with rank; G, alike as `scale` is.
        rank_gain: u, log gain of a rank; R.
        gain: v, log gain of a group; G.
        constant: c, the loss without damage and gain, above the best one; 1.
        units: m, log units of gain: near nats, or any, as the evidence decides; 1.
    """

    cells: Element
    trust: Element
    scale: Element
    offset: Element
    decay: Element
    rank_gain: Element
    gain: Element
    constant: Element
    units: Element


Arrays = ParameterBlocks[np.ndarray]


@dataclass(frozen=True)
class PriorDeviations:
    """Hyperparameters: prior deviations on the log scale; noise and misfit as shares of spread and excess.

    Attributes:
        trust, scale, offset, decay, gain: of t, z, o, k, v.
        noise: deviation between seeds of one plan, as a share of the median loss above the best.
        misfit: deviation from the table, as a share of a loss above the best.
        own: share of the misfit's variance that is the plan's own and not luck.
        units: of m, the overall scale of the prior's gain; 0 takes it to be in nats.
    """

    trust: float = 0.3
    scale: float = 0.3
    offset: float = 0.25
    decay: float = 0.3
    gain: float = 0.4
    noise: float = 0.01
    misfit: float = 0.05
    own: float = 0.5
    units: float = 0.25


@dataclass(frozen=True)
class AveragedTrials:
    """Evaluated plans (N, 2, G), replicates averaged: their losses (N,) in nats, and replicates (N,) of each."""

    codes: np.ndarray
    loss: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.loss)

    def append(self, codes: np.ndarray, loss: np.ndarray) -> AveragedTrials:
        weight = np.append(self.weight, np.ones(len(codes)))
        return AveragedTrials(np.concatenate([self.codes, codes]), np.append(self.loss, loss), weight)


class TableBasis:
    """Log damage, rank curves and covariances of a space and its sensitivities.

    Attributes:
        shape: (G, B, R).
        live: bool (G, B), whether a level does damage at all (16 bits do none).
        log_damage: (G, B); `deviation` (G, B) is its distance from the mean over groups.
        h: (R,), log(1 + rank / median rank), centred: damage falls as exp(-k h).
        gain: (G, R), prior fall of the loss by rank, half of it the mean over groups.
        alike: correlation of groups (G, G).
        cell: covariance (B R, B R) of log damage shared by all groups.
        alike_root, cell_root: their Cholesky factors.
    """

    def __init__(self, space: SearchSpace, sensitivities: Sensitivities | None):
        sensitivities = ensure_sensitivities(space, sensitivities)
        self.shape = (len(space), len(space.bits), len(space.ranks))
        damage = np.maximum(sensitivities.bits_damage, 0.0)
        mean = damage.mean(0)
        self.live = np.broadcast_to(mean > 0, damage.shape)
        log = np.log(np.where(self.live, np.maximum(damage, DAMAGE_FLOOR * mean), 1.0))
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
        self.alike = correlate_groups(space)
        self.cell = self._compute_cells()
        self.alike_root, self.cell_root = (
            np.linalg.cholesky(matrix + JITTER * np.eye(len(matrix))) for matrix in (self.alike, self.cell)
        )

    def _compute_cells(self) -> np.ndarray:
        _, B, R = self.shape
        h = np.outer(self.h, self.h)
        parts = (
            np.kron(np.ones((B, B)), np.ones((R, R))),
            np.kron(np.eye(B), np.ones((R, R))),
            np.kron(np.ones((B, B)), h),
            np.kron(np.eye(B), h),
            np.eye(B * R),
        )
        return np.asarray(sum(d * d * part for d, part in zip(SHARED_DEVIATIONS, parts, strict=True)))


def correlate_groups(space: SearchSpace) -> np.ndarray:
    """Correlation (G, G) of groups: their own part, and what they share with their kind and their depth."""
    groups = space.groups
    total = OWN_VARIANCE * np.eye(len(groups))
    kinds = np.array([g.kind for g in groups])
    same = (kinds[:, None] == kinds[None, :]).astype(float)
    if all(g.depth is not None for g in groups):
        depth = np.array([float(g.depth or 0) for g in groups])
        near = np.exp(
            -0.5 * ((depth[:, None] - depth[None, :]) / (DEPTH_LENGTHSCALE * max(np.ptp(depth), 1.0))) ** 2
        )
        total += DEPTH_VARIANCE * near + KIND_DEPTH_VARIANCE * near * same
    if len(set(kinds.tolist())) > 1:
        total += KIND_VARIANCE * same
    return total
