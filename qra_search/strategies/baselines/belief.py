"""What the finished trials say of other plans: a Gaussian process over rows, trials that still run fantasized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qra_search.space.space import Plan
from qra_search.strategies.plan_codec import PlanCodec
from qra_search.surrogates.gp import LossGP, fit_loss_gp

MIN_FIT = 4
"""Distinct plans that a fit needs."""
CLIP = 4.0
"""Losses count up to so many times as far above the best as the median is: a broken plan says little of good ones."""
BATCH = 20_000

Encoding = Callable[[np.ndarray], np.ndarray]
"""Rows (M, 2 G) to the inputs of the model (M, D), each column within [0, 1]."""
Score = Callable[[np.ndarray], np.ndarray]
"""Rows (M, 2 G) to their acquisition (M,); -inf is never chosen."""


@dataclass(frozen=True)
class Belief:
    """A fitted model, and what turns rows into its inputs.

    Attributes:
        table: float (G, B, R), the additive proxy of the loss that the model's mean may follow.
        rows: int (N, 2 G), the plans that the model knows, fantasized ones last.
        ceiling: loss above which observations were cut off.
    """

    codec: PlanCodec
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


def believe(
    codec: PlanCodec,
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
    rows = codec.encode(list(known))
    ceiling = float(losses.min() + CLIP * (np.median(losses) - losses.min()))
    ceiling = ceiling if ceiling > losses.min() else float(losses.max())
    gp = fit_loss_gp(encoding(rows), table_loss(table, rows), np.minimum(losses, ceiling), **options)
    belief = Belief(codec, gp, encoding, table, rows, ceiling)
    waiting = [plan for plan in pending if plan not in known]
    return belief.fantasize(codec.encode(waiting)) if waiting else belief


def table_loss(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float (M,): additive loss of rows (M, 2 G) by a table (G, B, R)."""
    groups = len(table)
    return table[np.arange(groups), rows[:, :groups], rows[:, groups:]].sum(1)


def known_rows(codec: PlanCodec, keys: Iterable[str]) -> set[bytes]:
    """The rows of plans by their keys, as bytes: what `best_rows` leaves out."""
    plans = [Plan.from_key(key) for key in keys]
    return {row.astype(np.int64).tobytes() for row in (codec.encode(plans) if plans else ())}


def best_rows(
    codec: PlanCodec, score: Score, rows: np.ndarray, known: set[bytes], limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Those of the rows that are not known and take at most `limit` bytes, each once, best first, with their scores."""
    rows = np.unique(rows.astype(np.int64), axis=0)
    rows = rows[codec.bytes(rows) <= limit]
    rows = rows[[row.tobytes() not in known for row in rows]] if len(rows) else rows
    values = np.concatenate([score(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)] or [np.zeros(0)])
    order = np.argsort(-values, kind="stable")
    order = order[np.isfinite(values[order])]
    return rows[order], values[order]
