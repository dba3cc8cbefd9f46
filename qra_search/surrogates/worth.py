"""What an evaluation is worth before it is made: expected fall of the loss handed over, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_points, _masses = np.polynomial.hermite_e.hermegauss(9)
NODES = tuple(zip(_points.tolist(), (_masses / _masses.sum()).tolist(), strict=True))
"""Gauss-Hermite nodes and weights of a standard normal."""


@dataclass(frozen=True)
class Outlook:
    """Plans, and how far an observation of each would move the belief in every other.

    Attributes:
        mean: (P,), believed losses of the plans.
        reach: (E, P), change of each plan's mean by each possible evaluation, per deviation of what it may show.
        own: (E,), the plan that an evaluation at full fidelity is of; -1 at a lower one.
        known: bool (P,), plans evaluated at full fidelity: they can be handed over.
    """

    mean: np.ndarray
    reach: np.ndarray
    own: np.ndarray
    known: np.ndarray

    def handover(self, fits: np.ndarray) -> np.ndarray:
        """(E,), expected fall of the least mean among the known plans and the one evaluated.

        The knowledge gradient (Frazier, Powell and Dayanik 2009) of what a search would hand over.

        Args:
            fits: bool (P,), plans within the budget.
        """
        pool = np.flatnonzero(fits & self.known)
        if not len(pool):
            return np.zeros(len(self.own))
        each = np.arange(len(self.own))
        new = (self.own >= 0) & fits[self.own]
        own_mean, own_reach = self.mean[self.own], self.reach[each, self.own]
        after = np.zeros(len(self.own))
        for z, mass in NODES:
            least = (self.mean[pool] + z * self.reach[:, pool]).min(1)
            after += mass * np.where(new, np.minimum(least, own_mean + z * own_reach), least)
        return np.maximum(self.mean[pool].min() - after, 0.0)

    def anywhere(self, fits: np.ndarray, size: int) -> np.ndarray:
        """(E,), expected fall of the least mean among the `size` best plans, evaluated or not."""
        pool = np.flatnonzero(fits)
        pool = pool[np.argsort(self.mean[pool], kind="stable")[:size]]
        if not len(pool):
            return np.zeros(len(self.own))
        after = sum(mass * (self.mean[pool] + z * self.reach[:, pool]).min(1) for z, mass in NODES)
        return np.maximum(self.mean[pool].min() - after, 0.0)
