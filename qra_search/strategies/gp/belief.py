"""What the finished trials say of other plans: a Gaussian process over rows of levels, pending trials fantasized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from qra_search.log.state import StudyState
from qra_search.space.space import Plan
from qra_search.strategies.base import Estimates, mean_estimates
from qra_search.strategies.evolution.edits import PlanCodec
from qra_search.surrogates.gp import Kernel, LossGP, fit_loss_gp

MIN_FIT = 4
"""Distinct plans that a fit needs."""
CLIP = 4.0
"""Losses count up to so many times as far above the best as the median is: a broken plan says little of good ones."""

Encoding = Callable[[np.ndarray], np.ndarray]
"""Rows of levels (M, 2 G) to the inputs of the model (M, D), each column within [0, 1]."""


@dataclass(frozen=True)
class Belief:
    """A fitted model, and what turns rows of levels into its inputs.

    Attributes:
        table: float (G, B, R), the additive proxy of the loss that the model's mean may follow.
        rows: int (N, 2 G), the plans that the model knows, fantasized ones last.
        ceiling: loss above which observations were cut off.
    """

    levels: PlanCodec
    gp: LossGP
    encoding: Encoding
    table: np.ndarray
    rows: np.ndarray
    ceiling: float

    def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and deviation (M,), (M,) of the loss of rows (M, 2 G)."""
        return self.gp.predict(self.encoding(rows), table_loss(self.table, rows))

    def mean(self, rows: np.ndarray) -> np.ndarray:
        """Posterior mean (M,) of rows (M, 2 G)."""
        return self.predict(rows)[0]

    def fantasize(self, rows: np.ndarray) -> Belief:
        """The belief once these rows have come out as expected."""
        gp = self.gp.fantasize(self.encoding(rows), table_loss(self.table, rows))
        return replace(self, gp=gp, rows=np.concatenate([self.rows, rows]))

    def estimates(self, state: StudyState) -> Estimates:
        """The posterior of every plan evaluated in full; what was observed of those too bad to be modelled."""
        observed = mean_estimates(state.full)
        mean, std = self.predict(self.levels.encode(observed.plans))
        modelled = observed.mean <= self.ceiling
        return Estimates(observed.plans, np.where(modelled, mean, observed.mean), np.where(modelled, std, observed.std))


def believe(
    levels: PlanCodec,
    known: Mapping[Plan, float],
    encoding: Encoding,
    table: np.ndarray,
    *,
    kernel: Kernel = "rbf",
    ard: bool = True,
    use_proxy: bool = True,
    pending: list[Plan] | None = None,
    seed: int = 0,
) -> Belief | None:
    """A belief fitted to plans and their losses; None if they are too few, or all alike."""
    losses = np.array(list(known.values()))
    if len(known) < MIN_FIT or np.ptp(losses) == 0:
        return None
    rows = levels.encode(list(known))
    ceiling = float(losses.min() + CLIP * (np.median(losses) - losses.min()))
    ceiling = ceiling if ceiling > losses.min() else float(losses.max())
    gp = fit_loss_gp(
        encoding(rows),
        table_loss(table, rows),
        np.minimum(losses, ceiling),
        kernel=kernel,
        ard=ard,
        use_proxy=use_proxy,
        seed=seed,
    )
    belief = Belief(levels, gp, encoding, table, rows, ceiling)
    waiting = [plan for plan in pending or [] if plan not in known]
    return belief.fantasize(levels.encode(waiting)) if waiting else belief


def table_loss(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float (M,): additive loss of rows (M, 2 G) by a table (G, B, R)."""
    groups = len(table)
    return table[np.arange(groups), rows[:, :groups], rows[:, groups:]].sum(1)
