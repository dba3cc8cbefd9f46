"""The lines of measurements that the study's scripts write and read, and intervals of what lies between two sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

MIB = 1 << 20
RESULTS = Path(__file__).parents[1] / "results" / "study"
DRAWS = 10_000


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def interval(
    mine: list[dict[str, Any]], theirs: list[dict[str, Any]], of: str, *, relative: bool
) -> tuple[float, float, float]:
    """Lower end, mean and upper end of the difference of a figure of rows; rows and pairs of seeds are drawn again.

    Args:
        relative: to theirs, of the sums; else the difference of the means.
    """
    own, other = (np.array([d[of] for d in side], dtype=float) for side in (mine, theirs))
    seeds, rows = own.shape
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(rows, np.full(rows, 1 / rows), DRAWS)
    weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS)

    def difference(weights: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        sums = [((weights @ side) * drawn).sum(-1) for side in (own, other)]
        return sums[0] / sums[1] - 1 if relative else (sums[0] - sums[1]) / (weights.sum(-1) * drawn.sum(-1))

    low, high = np.quantile(difference(weights, drawn), (0.025, 0.975))
    return float(low), float(difference(np.ones(seeds), np.ones(rows))), float(high)


def change(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """Relative difference of the losses of test rows, with its interval."""
    low, mean, high = (f"{x:+.1%}" for x in interval(mine, theirs, "row_losses", relative=True))
    return f"{mean} [{low}, {high}]"
