"""A table of real tunings of SmolLM2, the formula of their loss, and the landscape that it gives.

docs/table-of-tunings.md is the card.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit

from qra_eval.landscapes.families import make_generator
from qra_eval.landscapes.reference import ReferenceFront
from qra_search import plugins
from qra_search.allocate import knapsack
from qra_search.app.config import RunConfig
from qra_search.errors import BadInput
from qra_search.evaluator import Evaluator
from qra_search.schemas import LENGTH_PARAMETER, Evaluation, ExtraParameter, Plan, Sensitivities
from qra_search.space.budgets import resolve_budgets
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
HUBER_THRESHOLD = 0.15
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
    "collapsed": (1.5, 0.5),
    "collapsed_length": (0.0, 0.3),
    "edge": (1.5, 1.0),
    "edge_length": (0.0, 0.5),
    "edge_rank": (0.0, 0.3),
    "log_width": (-1.5, 0.7),
}
"""Mean and deviation of each parameter before any row is seen; with few rows they decide, with hundreds the rows do."""
KIND_DEVIATION = 0.5
"""Deviation of the log of how much more a kind of linear's damage counts than the sensitivities say."""
PRIOR_WEIGHT = 0.1
"""Deviation of the log loss that a parameter one deviation off its prior counts as."""
MIN_DAMAGE = 1e-9


# -- the table -------------------------------------------------------------------------------------
def load_tunings(task: str | None = None, data: Path = DATA) -> pandas.DataFrame:
    """The table of a task, or of both, as `read_rows` gives it; columns are those of the card."""
    import pandas

    return pandas.DataFrame(
        [row for name in (TASKS if task is None else (task,)) for row in read_rows(name, data)]
    )


def read_rows(task: str, data: Path = DATA) -> list[dict[str, Any]]:
    """The table of a task: a row a tuning, in the order in which they were made.

    A tuning that diverged has no losses, and says why in `failed`.
    """
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
class TuningTraits:
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

    def __getitem__(self, some: Any) -> TuningTraits:
        return TuningTraits(self.damage[some], self.rank[some], self.rate[some], self.length[some])


def list_kinds(space: SearchSpace) -> list[str]:
    return list(dict.fromkeys(group.kind for group in space.groups))


def compute_traits(
    space: SearchSpace,
    damage: np.ndarray,
    codes: np.ndarray,
    learning_rates: Sequence[float] | np.ndarray,
    steps: Sequence[float] | np.ndarray,
) -> TuningTraits:
    """The traits of tunings, by damage (G, B) of the sensitivities and codes (N, 2, G) of the plans."""
    kinds = list_kinds(space)
    members = np.array([[group.kind == kind for kind in kinds] for group in space.groups], dtype=float)
    linears = [i for i, group in enumerate(space.groups) if not group.is_embedding]
    ranks = np.asarray(space.ranks, dtype=float)[codes[:, 1][:, linears]]
    return TuningTraits(
        damage[np.arange(len(space)), codes[:, 0]] @ members,
        np.log2(ranks / MIDDLE_RANK).mean(1),
        np.log2(np.asarray(learning_rates) / MIDDLE_RATE),
        np.log(np.asarray(steps) / MIDDLE_STEPS) / np.log(LENGTH_UNIT),
    )


def compute_row_traits(
    space: SearchSpace, sensitivities: Sensitivities, rows: Sequence[Mapping[str, Any]]
) -> TuningTraits:
    codes = space.encode_many(parse_plan(row["plan"]) for row in rows)
    rates, steps = ([row[name] for row in rows] for name in ("learning_rate", "steps"))
    return compute_traits(space, sensitivities.bits_damage, codes, rates, steps)


# -- the formula -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class TuningFormula:
    """Test loss of a tuning as a formula of its traits; the logarithm of the loss is a sum of four terms, up to a rate
    beyond which a model forgets what it knew and its loss depends on nothing but the length.

    - level: a parabola over the length;
    - damage: `exp(log_damage + damage_length * length) * damage ** exp(log_power)`, where `damage` is the sum over
      kinds of what the sensitivities add up, each times a weight: the share of the loss that tuning leaves of it;
    - rank: `-gain_rank * rank`;
    - rate: a parabola about the best rate, which moves with length and rank.

    The share of the collapsed loss is a logistic function of the rate about an edge, which moves with length and rank.
    Near it one tuning may collapse and its twin not.

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

    def predict(self, traits: TuningTraits) -> np.ndarray:
        """Logarithms of test losses (N,)."""
        p, length = self.parameters, traits.length
        level = p["level"] + p["level_length"] * length + p["level_bend"] * length**2
        total = np.maximum(traits.damage @ self.weights, MIN_DAMAGE)
        damage = np.exp(p["log_damage"] + p["damage_length"] * length) * total ** np.exp(p["log_power"])
        off = traits.rate - self.compute_best_rate(length, traits.rank)
        rate = np.exp(p["log_bend"] + p["bend_length"] * length) * off**2
        tuned = level + damage - p["gain_rank"] * traits.rank + rate
        edge = p["edge"] + p["edge_length"] * length + p["edge_rank"] * traits.rank
        collapsed = p["collapsed"] + p["collapsed_length"] * length
        share = expit((traits.rate - edge) / np.exp(p["log_width"]))
        return np.asarray(tuned + share * (collapsed - tuned))


def fit_formula(traits: TuningTraits, losses: np.ndarray) -> TuningFormula:
    """The formula of least squares of losses (N,), robust against tunings far off it, drawn to the priors by few."""
    kinds = traits.damage.shape[1]
    means = np.array([mean for mean, _ in PRIORS.values()] + [0.0] * kinds)
    deviations = np.array([deviation for _, deviation in PRIORS.values()] + [KIND_DEVIATION] * kinds)

    def compute_residuals(values: np.ndarray) -> np.ndarray:
        off = (TuningFormula.from_values(values).predict(traits) - np.log(losses)) / HUBER_THRESHOLD
        robust = HUBER_THRESHOLD * np.sqrt(2 * (np.sqrt(1 + off**2) - 1))
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


# -- the landscape ----------------------------------------------------------------------------------
DEFAULT_RATE = 0.002
"""Of strategies that do not search it: the rate of the study of this model."""
DEFAULT_NOISE = 0.05
"""Deviation between seeds of the log loss at a length of which the table has no two seeds of a plan."""
SENSITIVITIES_COST = 0.26
"""Full evaluations that measuring the sensitivities is charged as: `qra plan` takes 115 processor seconds on Banking77,
and a tuning of 480 steps about 440."""
RANK_PRICES = (0.0, *np.geomspace(1e-3, 30.0, 24))
"""What a factor of two in all ranks may count as, in nats of damage, when the best plan is sought."""
EXTRA_PARAMETERS = {
    "learning_rate": ExtraParameter(values=LEARNING_RATES, default=DEFAULT_RATE),
    LENGTH_PARAMETER: ExtraParameter(values=tuple(steps / STEPS[-1] for steps in STEPS), default=1.0),
}


class TuningsLandscape(Evaluator):
    """Real tunings of SmolLM2 on a task as a formula of plan, learning rate and steps.

    Args:
        seed: draws the plans of the table that the formula is fitted to, with replacement, and the noise: so results
            over seeds include that the table is finite.
        noise: times the deviation between seeds that the table has.
        data: folder of the table.
    """

    def __init__(self, task: str = "banking77", seed: int = 0, *, noise: float = 1.0, data: Path = DATA):
        self.task, self.seed, self.noise = task, seed, noise
        rows = [row for row in read_rows(task, data) if "test_loss" in row]
        space, self._sensitivities = read_task(task, data)
        self.space: SearchSpace = space.with_extra(EXTRA_PARAMETERS)
        self.deviations = estimate_noise(rows)
        traits = compute_row_traits(space, self._sensitivities, rows)
        losses = np.array([row["test_loss"] for row in rows])
        drawn = draw_plans([row["plan"] for row in rows], make_generator("tunings", task, seed))
        self.formula: TuningFormula = fit_formula(traits[drawn], losses[drawn])

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        """The loss with the noise between seeds, which is a function of the task, the plan and `seed` alone."""
        begun = time.perf_counter()
        generator = make_generator("noise", self.task, self.seed, plan.key, seed)
        steps = round(STEPS[-1] * plan.length)
        deviation = self.noise * self.deviations.get(steps, DEFAULT_NOISE)
        loss = self.true_loss(plan) * float(np.exp(deviation * generator.standard_normal()))
        return Evaluation(loss, self.space.memory_bytes(plan), seconds=time.perf_counter() - begun, seed=seed)

    def true_loss(self, plan: Plan) -> float:
        rate = dict(plan.extra).get("learning_rate", DEFAULT_RATE)
        return float(self._compute_losses(self.space.encode(plan)[None], rate, plan.length)[0])

    def _compute_losses(self, codes: np.ndarray, rate: float, length: float) -> np.ndarray:
        """Losses (N,) of the plans of codes (N, 2, G) or more columns, at a learning rate and a share of all steps."""
        damage = self._sensitivities.bits_damage
        rates = np.full(len(codes), rate)
        steps = np.full(len(codes), STEPS[-1] * length)
        codes = codes[:, :, : len(self.space)]
        traits = compute_traits(self.space.without_extra, damage, codes, rates, steps)
        return np.exp(self.formula.predict(traits))

    @property
    def budgets(self) -> tuple[int, int, int]:
        first, last = resolve_budgets(self.space, ("uniform1r8", "uniform2r8"))
        return first, (first + last) // 2, last

    def find_reference_front(self, budgets: Sequence[int]) -> ReferenceFront:
        """The best plans under these budgets: knapsacks over weighted damage, at every price of rank and every rate."""
        plain = self.space.without_extra
        weights = self.formula.weights[[list_kinds(plain).index(group.kind) for group in plain.groups]]
        damage = (weights[:, None] * self._sensitivities.bits_damage)[:, :, None]
        is_linear = np.array([not group.is_embedding for group in plain.groups])
        rank = np.log2(np.maximum(plain.ranks, 1)) * (is_linear / is_linear.sum())[:, None]
        found = []
        for budget in sorted(budgets):
            room = budget - plain.fixed_bytes
            codes = []
            for price in RANK_PRICES:
                cost = np.where(plain.memory.allowed, damage - price * rank[:, None, :], np.inf)
                solution = knapsack.solve(cost, plain.memory.choice_bytes, room)
                if solution is not None:
                    codes.append(solution.code)
            tried = np.stack(codes)
            losses = np.array([self._compute_losses(tried, rate, 1.0) for rate in LEARNING_RATES])
            at_rate, at_plan = np.unravel_index(losses.argmin(), losses.shape)
            best = plain.decode(tried[at_plan])
            extra = (("learning_rate", LEARNING_RATES[at_rate]), (LENGTH_PARAMETER, 1.0))
            found.append((replace(best, extra=extra), float(losses.min())))
        return ReferenceFront(tuple(plan for plan, _ in found), tuple(loss for _, loss in found), exact=False)

    def sensitivities(self) -> Sensitivities:
        return replace(self._sensitivities, cost=SENSITIVITIES_COST)

    def describe(self) -> dict[str, Any]:
        return {"tunings": self.task, "seed": self.seed, "noise": self.noise}


def draw_plans(plans: Sequence[str], generator: np.random.Generator) -> np.ndarray:
    """Indices of rows whose plans (of each row, by key) are drawn with replacement, each with all its rows."""
    distinct = list(dict.fromkeys(plans))
    keys = np.asarray(plans)
    chosen = generator.integers(len(distinct), size=len(distinct))
    return np.concatenate([np.flatnonzero(keys == distinct[i]) for i in chosen])


def build(config: RunConfig) -> TuningsLandscape:
    """The landscape that a config names: `options` are those of `TuningsLandscape`."""
    made: TuningsLandscape = plugins.call_with_options(
        TuningsLandscape, "the evaluator 'tunings'", dict(config.options)
    )
    return made
