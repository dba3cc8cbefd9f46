"""Small spaces and evaluators with a known truth, shared by the tests of the search."""

from __future__ import annotations

import math

import numpy as np

from qra_search import Evaluation, Evaluator, Group, Linear, Plan, SearchSpace, Sensitivities
from qra_search.app.evaluator import TunableEvaluator


def make_space(groups: int = 6, bits=(2, 3, 4, 8), ranks=(4, 8, 16), **options) -> SearchSpace:
    return SearchSpace(
        groups=tuple(
            Group(
                name=f"layers.{i}",
                linears=(Linear(name=f"layers.{i}.proj", out_features=256 * (1 + i % 3), in_features=512),),
                kind="layer",
                depth=i,
            )
            for i in range(groups)
        ),
        bits=bits,
        ranks=ranks,
        **options,
    )


class AdditiveEvaluator(Evaluator):
    """Loss that is a plain sum over groups, so that its optimum is known exactly."""

    fidelities = (0.5, 1.0)

    def __init__(self, space: SearchSpace | None = None, noise: float = 0.0, with_sensitivities: bool = True):
        self.space = space or make_space()
        self.weights = np.random.default_rng(7).uniform(0.2, 2.0, len(self.space))
        self.noise, self.with_sensitivities, self.calls = noise, with_sensitivities, 0

    def true_loss(self, plan: Plan) -> float:
        terms = zip(self.weights, plan.bits, plan.ranks, strict=True)
        return 1.0 + sum(w * 4.0 ** (2 - b) / (1 + r) ** 0.5 for w, b, r in terms)

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        self.calls += 1
        jitter = np.random.default_rng([seed, *plan.bits, *plan.ranks]).normal() * self.noise
        return Evaluation(
            self.true_loss(plan) + jitter,
            self.space.memory_bytes(plan),
            fidelity=fidelity,
            seed=seed,
            seconds=0.01,
        )

    def sensitivities(self) -> Sensitivities | None:
        if not self.with_sensitivities:
            return None
        damage = self.weights[:, None] * 4.0 ** (2 - np.array(self.space.bits, dtype=float))
        return Sensitivities(
            damage, np.zeros((len(self.space), len(self.space.ranks))), cost=0.5, source="exact"
        )


class QuietTunable(TunableEvaluator):
    """Knows no rows and no costs, and tunes nothing; tests override what they need."""

    def row_counts(self):
        return {}

    def sensitivity_cost(self):
        return 0.0

    def evaluation_seconds(self):
        return math.nan

    def estimate_search_cost(self):
        return {}

    def list_fitting_cards(self):
        return ()

    def render_row(self):
        return None

    def tune(self, plan, **options):
        raise NotImplementedError

    def finetune_steps(self):
        return 100

    def set_learning_rate(self, rate):
        raise NotImplementedError

    def try_rate(self, plan, rate, steps, **options):
        raise NotImplementedError

    def tuning_data(self):
        return ""

    def measure_untuned(self):
        return None

    def write_base(self, plan, folder):
        raise NotImplementedError
