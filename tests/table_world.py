"""A small world whose loss is a table indeed, with sensitivities of it: what the surrogate of a table is tested on."""

from __future__ import annotations

import numpy as np

from qra_search.allocate.solve import compute_table_losses
from qra_search.schemas import Sensitivities
from qra_search.surrogates.basis import AveragedTrials, TableBasis
from qra_search.testing.scenarios import make_toy_space

NOISE = 0.002


class World:
    """A loss that is a table indeed, its sensitivities, and random plans."""

    def __init__(
        self, layers: int = 12, prior_error: float = 0.35, shuffled: bool = False, bits=(2, 3, 4, 8)
    ):
        rng = np.random.default_rng(7)
        self.space = make_toy_space(layers, bits=bits)
        G, R = layers, len(self.space.ranks)
        column = np.array([0.25 ** (x - 2) if x < 16 else 0.0 for x in bits])
        damage = rng.lognormal(0.0, 0.7, (G, 1)) * column / G
        left = np.array([0.7, 0.55, 0.4])[:R]
        self.gain = np.tile(0.05 * np.arange(R) / G, (G, 1))
        self.table = damage[:, :, None] * left - self.gain[:, None, :]
        sensitivities = damage * rng.lognormal(0.0, prior_error, damage.shape)
        self.sensitivities = Sensitivities(
            sensitivities[rng.permutation(G)] if shuffled else sensitivities, self.gain
        )
        self.basis = TableBasis(self.space, self.sensitivities)
        self.rng = rng

    def plans(self, count: int) -> np.ndarray:
        """int (count, 2, G), codes of random plans."""
        G, B, R = self.table.shape
        return np.stack([self.rng.integers(0, B, (count, G)), self.rng.integers(0, R, (count, G))], axis=1)

    def loss(self, codes: np.ndarray) -> np.ndarray:
        return 1.0 + compute_table_losses(self.table, codes)

    def rows(self, count: int, noise: float = NOISE) -> AveragedTrials:
        codes = self.plans(count)
        loss = self.loss(codes) + noise * self.rng.standard_normal(count)
        return AveragedTrials(codes, loss, np.ones(count))
