"""Differences between two sides of tuned rows with their intervals, and Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import cache

import numpy as np

DRAWS = 10_000


@cache
def draw_row_counts(rows: int) -> tuple[np.ndarray, np.random.Generator]:
    """How often each row (DRAWS, rows) is in each bootstrap draw, and the generator that those of seeds come from."""
    generator = np.random.default_rng(0)
    return generator.multinomial(rows, np.full(rows, 1 / rows), DRAWS).astype(float), generator


def difference(
    own: np.ndarray, other: np.ndarray, *, relative: bool = True, level: float = 0.95
) -> tuple[float, float, float]:
    """Lower end, mean and upper end of the difference of two sides, paired: the same seeds and the same test rows.

    The interval holds percentiles of 10,000 bootstrap draws of rows and of seeds together.

    Args:
        own, other: (seeds, rows).
        relative: to the other, of the sums; else the difference of the means.
        level: share of the draws within the interval.
    """
    seeds, rows = own.shape
    row_counts, generator = draw_row_counts(rows)
    seed_counts = deepcopy(generator).multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS)

    def compare(seed_counts: np.ndarray, row_counts: np.ndarray) -> np.ndarray:
        sums = [((row_counts @ side.T) * seed_counts).sum(-1) for side in (own, other)]
        if relative:
            return sums[0] / sums[1] - 1
        return (sums[0] - sums[1]) / (seed_counts.sum(-1) * row_counts.sum(-1))

    low, high = np.quantile(compare(seed_counts, row_counts), ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(compare(np.ones(seeds), np.ones(rows))), float(high)


def make_markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(f"| {' | '.join(cells)} |" for cells in body),
    ]
