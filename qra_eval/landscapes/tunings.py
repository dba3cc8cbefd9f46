"""A table of real tunings of SmolLM2, and the formula of their loss (docs/table-of-tunings.md is the card)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import least_squares

from qra_search.errors import BadInput
from qra_search.schemas import Plan, Sensitivities
from qra_search.space.serialization import read_sensitivities
from qra_search.space.space import SearchSpace

if TYPE_CHECKING:
    import pandas

DATA = Path(__file__).parent / "data"
TASKS = ("banking77", "restaurant8k")
LEARNING_RATES = (0.001, 0.002, 0.004, 0.008, 0.016)
STEPS = (30, 120, 480)
MIDDLE_STEPS, LENGTH_UNIT = 120, 4.0
"""Lengths enter as logarithms to the base of the unit, from the middle one: -1, 0, 1 for 30, 120, 480 steps."""
MIDDLE_RATE, MIDDLE_RANK = 0.004, 8
ROBUST_FROM = 0.15
"""Residuals of the log loss beyond this count by their size, not by its square: a tuning with far too high a rate says
little of good ones."""
PRIORS: dict[str, tuple[float, float]] = {
    "level": (-1.0, 2.0),
    "level_length": (-1.0, 1.0),
    "level_bend": (0.0, 0.5),
    "log_damage": (-1.5, 1.0),
    "damage_length": (0.0, 0.5),
    "log_power": (-0.5, 0.5),
    "gain_rank": (0.02, 0.1),
    "top": (0.0, 1.0),
    "top_length": (-1.0, 0.5),
    "top_rank": (0.0, 0.5),
    "log_bend": (-3.0, 1.0),
    "bend_length": (0.0, 0.5),
    "log_steeper": (0.3, 0.5),
}
"""Mean and deviation of each parameter before any row is seen; with few rows they decide, with hundreds the rows do."""
KIND_DEVIATION = 0.5
"""Deviation of the log of how much more a kind of linear's damage counts than the sensitivities say."""
PRIOR_WEIGHT = 0.1
"""Deviation of the log loss that a parameter one deviation off its prior counts as."""
LEAST_DAMAGE = 1e-9


# -- the table -------------------------------------------------------------------------------------
def load_tunings(task: str | None = None, data: Path = DATA) -> pandas.DataFrame:
    """The table of a task, or of both: a line a tuning, in the order in which they were made.

    Columns are those of the card. A tuning that diverged has no losses, and says why in `failed`.
    """
    import pandas

    rows = [row for name in ((task,) if task is not None else TASKS) for row in read_rows(name, data)]
    return pandas.DataFrame(rows)


def read_rows(task: str, data: Path = DATA) -> list[dict[str, Any]]:
    if task not in TASKS:
        raise BadInput(f"the table of tunings has the tasks {' and '.join(TASKS)}, not {task!r}")
    file = data / "tunings.jsonl"
    if not file.is_file():
        raise BadInput(f"{file} does not exist: make a table with `python -m benchmarks.tunings`")
    return [row for row in map(json.loads, file.read_text("utf-8").splitlines()) if row["task"] == task]


@cache
def read_task(task: str, data: Path = DATA) -> tuple[SearchSpace, Sensitivities]:
    space, sensitivities, _ = read_sensitivities(data / f"sensitivities-{task}.json")
    return space, sensitivities


def parse_plan(key: str) -> Plan:
    """The plan of a line's `plan`, as `Plan.key` wrote it."""
    bits, ranks = (side.split(",") for side in key.split("|"))
    return Plan(tuple(int(b) if b.isdecimal() else b for b in bits), tuple(map(int, ranks)))


# -- what the loss follows from --------------------------------------------------------------------
@dataclass(frozen=True)
class Traits:
    """What the formula knows of N tunings.

    Attributes:
        damage: float (N, K), of the plan by the sensitivities, in nats before tuning, by kind of linear.
        rank: float (N,), mean over linears of log2(rank / 8).
        rate: float (N,), log2(learning rate / 0.004).
        length: float (N,), log4(steps / 120).
    """

    damage: np.ndarray
    rank: np.ndarray
    rate: np.ndarray
    length: np.ndarray

    def __getitem__(self, some: Any) -> Traits:
        return Traits(self.damage[some], self.rank[some], self.rate[some], self.length[some])


def list_kinds(space: SearchSpace) -> list[str]:
    return list(dict.fromkeys(group.kind for group in space.groups))


def compute_traits(
    space: SearchSpace,
    damage: np.ndarray,
    codes: np.ndarray,
    learning_rates: Sequence[float] | np.ndarray,
    steps: Sequence[float] | np.ndarray,
) -> Traits:
    """The traits of tunings, by damage (G, B) of the sensitivities and codes (N, 2, G) of the plans."""
    kinds = list_kinds(space)
    members = np.array([[group.kind == kind for kind in kinds] for group in space.groups], dtype=float)
    linears = [i for i, group in enumerate(space.groups) if not group.is_embedding]
    ranks = np.asarray(space.ranks, dtype=float)[codes[:, 1][:, linears]]
    return Traits(
        damage[np.arange(len(space)), codes[:, 0]] @ members,
        np.log2(ranks / MIDDLE_RANK).mean(1),
        np.log2(np.asarray(learning_rates) / MIDDLE_RATE),
        np.log(np.asarray(steps) / MIDDLE_STEPS) / np.log(LENGTH_UNIT),
    )


def compute_row_traits(
    space: SearchSpace, sensitivities: Sensitivities, rows: Sequence[Mapping[str, Any]]
) -> Traits:
    codes = space.encode_many(parse_plan(row["plan"]) for row in rows)
    rates, steps = ([row[name] for row in rows] for name in ("learning_rate", "steps"))
    return compute_traits(space, sensitivities.bits_damage, codes, rates, steps)


# -- the formula -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class TuningFormula:
    """Test loss of a tuning as a formula of its traits; the logarithm of the loss is a sum of four terms.

    - level: a parabola over the length;
    - damage: `exp(log_damage + damage_length * length) * damage ** exp(log_power)`, where `damage` is the sum over
      kinds of what the sensitivities add up, each times a weight: the share of the loss that tuning leaves of it;
    - rank: `-gain_rank * rank`;
    - rate: a parabola about the best rate, which moves with length and rank, and is steeper above it than below.

    Attributes:
        parameters: by the names of `PRIORS`.
        weights: float (K,), of the kinds.
    """

    parameters: Mapping[str, float]
    weights: np.ndarray

    @classmethod
    def from_values(cls, values: np.ndarray) -> TuningFormula:
        """The formula of what `fit_formula` varies: parameters, then logarithms of weights."""
        return cls(dict(zip(PRIORS, values, strict=False)), np.exp(values[len(PRIORS) :]))

    def compute_best_rate(self, length: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """log2(best learning rate / 0.004) (N,)."""
        p = self.parameters
        return np.asarray(p["top"] + p["top_length"] * length + p["top_rank"] * rank)

    def predict(self, traits: Traits) -> np.ndarray:
        """Logarithms of test losses (N,)."""
        p, length = self.parameters, traits.length
        level = p["level"] + p["level_length"] * length + p["level_bend"] * length**2
        total = np.maximum(traits.damage @ self.weights, LEAST_DAMAGE)
        damage = np.exp(p["log_damage"] + p["damage_length"] * length) * total ** np.exp(p["log_power"])
        off = traits.rate - self.compute_best_rate(length, traits.rank)
        steeper = np.where(off > 0, np.exp(p["log_steeper"]), 1.0)
        rate = np.exp(p["log_bend"] + p["bend_length"] * length) * steeper * off**2
        return np.asarray(level + damage - p["gain_rank"] * traits.rank + rate)


def fit_formula(traits: Traits, losses: np.ndarray) -> TuningFormula:
    """The formula of least squares of losses (N,), robust against tunings far off it, drawn to the priors by few."""
    kinds = traits.damage.shape[1]
    means = np.array([mean for mean, _ in PRIORS.values()] + [0.0] * kinds)
    deviations = np.array([deviation for _, deviation in PRIORS.values()] + [KIND_DEVIATION] * kinds)

    def compute_residuals(values: np.ndarray) -> np.ndarray:
        off = (TuningFormula.from_values(values).predict(traits) - np.log(losses)) / ROBUST_FROM
        robust = ROBUST_FROM * np.sqrt(2 * (np.sqrt(1 + off**2) - 1))
        return np.concatenate([robust, PRIOR_WEIGHT * (values - means) / deviations])

    return TuningFormula.from_values(least_squares(compute_residuals, means).x)


def estimate_noise(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Deviation between seeds of the log loss, by steps, from rows that differ in nothing but the seed."""
    alike: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if "test_loss" in row:
            key = row["task"], row["plan"], row["learning_rate"], row["steps"]
            alike.setdefault(key, []).append(float(np.log(row["test_loss"])))
    variances: dict[int, list[float]] = {}
    for (*_, steps), values in alike.items():
        if len(values) > 1:
            variances.setdefault(steps, []).append(float(np.var(values, ddof=1)))
    return {steps: float(np.sqrt(np.mean(found))) for steps, found in sorted(variances.items())}
