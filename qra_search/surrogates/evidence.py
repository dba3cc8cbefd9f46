"""Hyperparameters of the table by evidence."""

from __future__ import annotations

from qra_search.surrogates.table import TableFit, Widths

STARTS = (Widths(), Widths(trust=0.5, scale=0.6, offset=0.4), Widths(trust=0.0, scale=0.9, offset=0.4))


def fit_table(basis, b, r, loss, count, starts=STARTS, sweeps=1) -> TableFit:
    fits = [TableFit(basis, b, r, loss, count, w) for w in starts]
    best = max(fits, key=lambda f: f.evidence)
    return best.refine(sweeps)
