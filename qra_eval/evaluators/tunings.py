"""A landscape of real tunings: the loss by plan, learning rate and length, by the formula fitted to the table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qra_eval.landscapes.families import make_generator
from qra_eval.landscapes.reference import Reference
from qra_eval.landscapes.tunings import (
    DATA,
    LEARNING_RATES,
    STEPS,
    TuningFormula,
    compute_row_traits,
    compute_traits,
    estimate_noise,
    fit_formula,
    list_kinds,
    read_rows,
    read_task,
)
from qra_search import plugins
from qra_search.allocate import knapsack
from qra_search.app.config import RunConfig
from qra_search.evaluator import Evaluator
from qra_search.schemas import LENGTH, Evaluation, Parameter, Plan, Sensitivities
from qra_search.space.budgets import resolve_budget
from qra_search.space.space import SearchSpace

DEFAULT_RATE = 0.002
"""Of strategies that do not search it: the rate of the study of this model."""
DEFAULT_NOISE = 0.05
"""Deviation between seeds of the log loss at a length of which the table has no two seeds of a plan."""
SENSITIVITIES_COST = 0.26
"""Full evaluations that measuring the sensitivities is charged as: `qra plan` takes 115 processor seconds on Banking77,
and a tuning of 480 steps about 440."""
BUDGETS = ("uniform1r8", "uniform2r8")
"""The smallest and the largest budget; the third lies midway."""
RANK_PRICES = (0.0, *np.geomspace(1e-3, 30.0, 24))
"""What a factor of two in all ranks may count as, in nats of damage, when the best plan is sought."""


LENGTHS = tuple(steps / STEPS[-1] for steps in STEPS)
EXTRA = {
    "learning_rate": Parameter(values=LEARNING_RATES, default=DEFAULT_RATE),
    LENGTH: Parameter(values=LENGTHS, default=1.0),
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
        self.space: SearchSpace = space.with_extra(EXTRA)
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

    @cached_property
    def budgets(self) -> tuple[int, int, int]:
        first, last = (resolve_budget(self.space, budget) for budget in BUDGETS)
        return first, (first + last) // 2, last

    def find_reference_front(self, budgets: Sequence[int]) -> Reference:
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
            extra = (("learning_rate", LEARNING_RATES[at_rate]), (LENGTH, 1.0))
            found.append((replace(best, extra=extra), float(losses.min())))
        return Reference(tuple(plan for plan, _ in found), tuple(loss for _, loss in found), exact=False)

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
