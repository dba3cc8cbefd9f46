"""What the finished trials say of other plans: a Gaussian process over plans, trials that still run fantasized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qra_search.allocate.table import table_losses
from qra_search.space.space import Plan, SearchSpace
from qra_search.space.steps import drop_known
from qra_search.surrogates.gp import LossGP, fit_loss_gp

MIN_FIT = 4
"""Distinct plans that a fit needs."""
CLIP = 4.0
"""Losses count up to so many times as far above the best as the median is: a broken plan says little of good ones."""
BATCH = 20_000

Encoding = Callable[[np.ndarray], np.ndarray]
"""Codes (M, 2, G) to the inputs of the model (M, D), each column within [0, 1]."""
Score = Callable[[np.ndarray], np.ndarray]
"""Codes (M, 2, G) to their acquisition (M,); -inf is never chosen."""


@dataclass(frozen=True)
class Belief:
    """A fitted model, and what turns codes into its inputs.

    Attributes:
        table: float (G, B, R), the additive proxy of the loss that the model's mean may follow.
        codes: int (N, 2, G), the plans that the model knows, fantasized ones last.
        ceiling: loss above which observations were cut off.
    """

    space: SearchSpace
    gp: LossGP
    encoding: Encoding
    table: np.ndarray
    codes: np.ndarray
    ceiling: float

    def predict(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and deviation (M,), (M,) of the loss of plans (M, 2, G)."""
        return self.gp.predict(self.encoding(codes), table_losses(self.table, codes))

    def mean(self, codes: np.ndarray) -> np.ndarray:
        """Posterior mean (M,) of plans (M, 2, G)."""
        return self.predict(codes)[0]

    def fantasize(self, codes: np.ndarray) -> Belief:
        """The belief once these plans have come out as expected."""
        gp = self.gp.fantasize(self.encoding(codes), table_losses(self.table, codes))
        return replace(self, gp=gp, codes=np.concatenate([self.codes, codes]))


def believe(
    space: SearchSpace,
    known: Mapping[Plan, float],
    encoding: Encoding,
    table: np.ndarray,
    pending: Iterable[Plan],
    **options: Any,
) -> Belief | None:
    """A belief fitted to plans and their losses; None if they are too few, or all alike.

    Args:
        pending: plans that are being evaluated.
        options: of `fit_loss_gp`.
    """
    losses = np.array(list(known.values()))
    if len(known) < MIN_FIT or np.ptp(losses) == 0:
        return None
    codes = space.encode_many(known)
    ceiling = float(losses.min() + CLIP * (np.median(losses) - losses.min()))
    ceiling = ceiling if ceiling > losses.min() else float(losses.max())
    gp = fit_loss_gp(encoding(codes), table_losses(table, codes), np.minimum(losses, ceiling), **options)
    belief = Belief(space, gp, encoding, table, codes, ceiling)
    waiting = [plan for plan in pending if plan not in known]
    return belief.fantasize(space.encode_many(waiting)) if waiting else belief


def best_codes(
    space: SearchSpace, score: Score, codes: np.ndarray, known: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Those of the codes (M, 2, G) that are not known (N, 2, G) and take at most `limit` bytes, each once, best first,
    with their scores."""
    codes = np.unique(codes, axis=0)
    codes = codes[space.memory.bytes(codes) <= limit]
    codes = drop_known(codes, known)
    values = np.concatenate([score(codes[i : i + BATCH]) for i in range(0, len(codes), BATCH)] or [np.zeros(0)])
    order = np.argsort(-values, kind="stable")
    order = order[np.isfinite(values[order])]
    return codes[order], values[order]
