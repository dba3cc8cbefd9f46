"""What the sensitivities say of every choice of every group: a table of losses that add up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.space.space import Plan, SearchSpace


def sensitivity_table(space: SearchSpace, sensitivities: Sensitivities | None) -> np.ndarray:
    """float (G, B, R): loss in nats that each choice adds according to the sensitivities.

    Damage falls with rank as their `repair` says, since an adapter repairs a part of it. Without them every weight is
    taken to be damaged alike, by the round-to-nearest error of its bit-width, and rank to gain in proportion to log2.
    """
    sensitivities = usable_sensitivities(space, sensitivities)
    ranks = np.asarray(space.ranks, dtype=float)
    left = (1.0 + ranks) ** -sensitivities.repair
    return sensitivities.bits_damage[:, :, None] * left - sensitivities.rank_gain[:, None, :]


def table_losses(space: SearchSpace, sensitivities: Sensitivities, plans: Sequence[Plan]) -> np.ndarray:
    """Loss (N,) of plans by the sensitivities alone, up to a constant: their table, added up over groups."""
    bits, ranks = space.encode_many(plans)
    return sensitivity_table(space, sensitivities)[np.arange(len(space)), bits, ranks].sum(1)


def usable_sensitivities(space: SearchSpace, sensitivities: Sensitivities | None) -> Sensitivities:
    """The sensitivities, or flat ones where there are none or they say nothing (all entries are zero)."""
    return (
        sensitivities
        if sensitivities is not None and (sensitivities.bits_damage.any() or sensitivities.rank_gain.any())
        else flat_sensitivities(space)
    )


def flat_sensitivities(space: SearchSpace) -> Sensitivities:
    """What is known before anything is measured: error falls fourfold a bit, and larger groups matter more."""
    share = np.array([g.weights for g in space.groups], dtype=float)
    share /= share.sum()
    error = np.array([4.0 ** (2 - b) if b < 16 else 0.0 for b in space.widths])
    gain = np.log2(1.0 + np.asarray(space.ranks, dtype=float)) * 0.01
    return Sensitivities(share[:, None] * error, share[:, None] * gain, source="flat")
