"""The additive table: the loss that every choice of every group adds according to the sensitivities."""

from __future__ import annotations

import numpy as np

from qra_search.allocate.sensitivities import Sensitivities
from qra_search.space.space import SearchSpace


def additive_table(space: SearchSpace, sensitivities: Sensitivities | None) -> np.ndarray:
    """float (G, B, R): nats of loss that each choice adds to that of the model in 16 bits without adapters.

    Damage falls with rank by `repair`, since an adapter repairs a part of it. `flat_sensitivities` stand in for
    sensitivities that are None or all zero.
    """
    sensitivities = usable_sensitivities(space, sensitivities)
    ranks = np.asarray(space.ranks, dtype=float)
    left = (1.0 + ranks) ** -sensitivities.repair
    return sensitivities.bits_damage[:, :, None] * left - sensitivities.rank_gain[:, None, :]


def table_losses(table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Loss (N,) of encoded plans (N, 2, G) by a table (G, B, R): its entries added up over groups."""
    return np.asarray(table[np.arange(len(table)), codes[:, 0], codes[:, 1]].sum(-1))


def usable_sensitivities(space: SearchSpace, sensitivities: Sensitivities | None) -> Sensitivities:
    """The sensitivities, or flat ones if they are None or all zero."""
    if sensitivities is None or not (sensitivities.bits_damage.any() or sensitivities.rank_gain.any()):
        return flat_sensitivities(space)
    return sensitivities


def flat_sensitivities(space: SearchSpace) -> Sensitivities:
    """Sensitivities before anything is measured: error falls fourfold a bit, gain grows with log2(1 + rank), and both
    are in proportion to a group's weights."""
    share = np.array([g.weights for g in space.groups], dtype=float)
    share /= share.sum()
    error = np.array([4.0 ** (2 - b) if b < 16 else 0.0 for b in space.widths])
    gain = np.log2(1.0 + np.asarray(space.ranks, dtype=float)) * 0.01
    return Sensitivities(share[:, None] * error, share[:, None] * gain, source="flat")
