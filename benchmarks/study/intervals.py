"""Differences between two sides of tuned rows with their intervals, and tables of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

DRAWS = 10_000


@cache
def resampled(seeds: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed (DRAWS, seeds) and each row (DRAWS, rows) is in each bootstrap draw."""
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(rows, np.full(rows, 1 / rows), DRAWS)
    return generator.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS), drawn


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
    weights, drawn = resampled(seeds, rows)

    def of(weights: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        sums = [((weights @ side) * drawn).sum(-1) for side in (own, other)]
        return sums[0] / sums[1] - 1 if relative else (sums[0] - sums[1]) / (weights.sum(-1) * drawn.sum(-1))

    low, high = np.quantile(of(weights, drawn), ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(of(np.ones(seeds), np.ones(rows))), float(high)


def rows_of(lines: Iterable[dict[str, Any]], figure: str = "row_losses") -> np.ndarray:
    """(seeds, rows): a figure of every test row, by lines of one seed each."""
    return np.array([line[figure] for line in lines], dtype=float)


def change(mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], level: float = 0.95) -> str:
    """Relative difference of the losses of test rows, with its interval; the same seeds in the same order."""
    low, mean, high = (f"{x:+.1%}" for x in difference(rows_of(mine), rows_of(theirs), level=level))
    return f"{mean} [{low}, {high}]"


def points(mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> str:
    """As `change`, of the shares of right answers, in points."""
    sides = (rows_of(some, "row_right") for some in (mine, theirs))
    low, mean, high = (f"{100 * x:+.1f}" for x in difference(*sides, relative=False))
    return f"{mean} [{low}, {high}]"


def by_seed(lines: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Lines by their seed."""
    return {line["seed"]: line for line in lines}


def paired(
    mine: dict[Any, dict[str, Any]], theirs: dict[Any, dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of both sides at the seeds, or runs, that both have, in the order of the first."""
    both = [seed for seed in mine if seed in theirs]
    return [mine[seed] for seed in both], [theirs[seed] for seed in both]


def mean_loss(lines: Sequence[dict[str, Any]]) -> float:
    """Mean test loss over seeds."""
    return float(np.mean([line["test_loss"] for line in lines]))


def table_of(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(cells)} |" for cells in body)]
