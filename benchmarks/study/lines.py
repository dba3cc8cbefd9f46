"""The lines of measurements that the study's scripts write and read, and intervals of what lies between two sides."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

MIB = 1 << 20
RESULTS = Path(__file__).parents[1] / "results" / "study"
DRAWS = 10_000


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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


def rows_of(lines: list[dict[str, Any]], figure: str) -> np.ndarray:
    """(seeds, rows): a figure of every test row, by lines of one seed each."""
    return np.array([line[figure] for line in lines], dtype=float)


def change(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """Relative difference of the losses of test rows, with its interval."""
    low, mean, high = (f"{x:+.1%}" for x in difference(*(rows_of(side, "row_losses") for side in (mine, theirs))))
    return f"{mean} [{low}, {high}]"


def table_of(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(cells)} |" for cells in body)]
