"""Small spaces, evaluators in closed form and ready-made study states, for tests and examples."""

from __future__ import annotations

import math
import random
import sys
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from qra_search.errors import EvaluationFailed
from qra_search.evaluator import Evaluator
from qra_search.log.journal import TrialLog
from qra_search.log.state import StudyState
from qra_search.schemas import Evaluation, Group, Linear, Plan, Sensitivities
from qra_search.space.memory import Level, make_levels
from qra_search.space.space import SearchSpace
from qra_search.strategies import Strategy
from qra_search.strategies.simple import RandomStrategy

DOUBLY_STORED_BITS = (2, Level("nf4", 4, "bitsandbytes"), Level("hqq-4", 4, "hqq"), 8)
"""Bits of a space that stores four bits in two ways of equal bytes."""


TOY_SHAPES = {
    "q": (256, 256),
    "k": (64, 256),
    "v": (64, 256),
    "o": (256, 256),
    "gate": (512, 256),
    "up": (512, 256),
    "down": (256, 512),
}
"""Linears of a toy layer, out and in."""


def make_toy_space(
    layers: int = 5,
    granularity: str = "layer",
    *,
    bits: tuple[int | Level, ...] = (2, 3, 4, 8),
    ranks: tuple[int, ...] = (4, 8, 16),
    restricted: bool = False,
    table: bool = False,
) -> SearchSpace:
    """A space of small decoder layers, one group a `layer` or a `module` (seven a layer).

    With `restricted`, every third group may take neither the smallest bit-width nor the largest rank. With `table`, a
    group of embeddings comes last that has levels of its own and no rank, and does not follow uniform plans.
    """
    names = tuple(level.name for level in make_levels(bits))
    groups: list[Group] = []
    for layer in range(layers):
        kinds = (
            {"layer": tuple(TOY_SHAPES)} if granularity == "layer" else {name: (name,) for name in TOY_SHAPES}
        )
        for kind, members in kinds.items():
            linears = tuple(
                Linear(
                    name=f"layers.{layer}.{m}", out_features=TOY_SHAPES[m][0], in_features=TOY_SHAPES[m][1]
                )
                for m in members
            )
            left_out = int(restricted and len(groups) % 3 == 0)
            group = Group(name=f"layers.{layer}.{kind}", linears=linears, kind=kind, depth=layer)
            if left_out or table:
                group = replace(group, bits=names[left_out:], ranks=ranks[: len(ranks) - left_out])
            groups.append(group)
    if table:
        embeddings = Group(
            name="embed",
            linears=(Linear(name="embed", out_features=1024, in_features=256),),
            bits=(*names[1:], 16),
            ranks=(0,),
            kind="embed",
            depth=layers,
            is_embedding=True,
        )
        groups.append(embeddings)
        bits = (*bits, 16)
        ranks = (0, *ranks)
    return SearchSpace(groups=groups, bits=bits, ranks=ranks)


class ToyEvaluator(Evaluator):
    """A loss in closed form: damage that falls with bits and rank, more where neighbours are both damaged, noise.

    Args:
        space: default: `make_toy_space()`.
        sensitivities: `true`, `zero`, or None.
        fidelities: below 1 the loss is higher and noisier.
        failing: share of plans whose evaluation fails.
    """

    def __init__(
        self,
        space: SearchSpace | None = None,
        *,
        sensitivities: str | None = "true",
        fidelities: tuple[float, ...] = (1.0,),
        failing: float = 0.0,
        noise: float = 0.002,
    ):
        self.space = space or make_toy_space()
        self.fidelities = fidelities
        self.failing = failing
        self.noise = noise
        groups = len(self.space)
        rng = np.random.default_rng(5)
        error = np.array([0.25 ** (b - 2) if b < 16 else 0.0 for b in self.space.widths])
        self.damage = rng.lognormal(0.0, 0.8, groups)[:, None] * error / groups
        self.gain = (
            rng.uniform(0.01, 0.05, groups)[:, None] * np.log2(1.0 + np.array(self.space.ranks)) / groups
        )
        self._sensitivities = None
        if sensitivities is not None:
            scale = float(sensitivities == "true")
            self._sensitivities = Sensitivities(
                scale * self.damage, scale * self.gain, cost=0.5, source="toy"
            )

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        b, r = self.space.encode(plan)
        rng = np.random.default_rng([seed, int(1000 * fidelity), *b, *r])
        if rng.random() < self.failing:
            raise EvaluationFailed("this evaluation fails on purpose, to test how failures are handled")
        rows = np.arange(len(b))
        hurt = self.damage[rows, b]
        loss = 1.0 + hurt.sum() - self.gain[rows, r].sum() + np.sqrt(hurt[1:] * hurt[:-1]).sum()
        loss += 0.2 * (1.0 - fidelity) * (1.0 + loss) + self.noise * rng.normal() / math.sqrt(fidelity)
        return Evaluation(float(loss), self.space.memory_bytes(plan), fidelity=fidelity, seed=seed)

    def sensitivities(self) -> Sensitivities | None:
        return self._sensitivities

    def describe(self) -> dict[str, Any]:
        return {"toy": self.space.signature, "noise": self.noise, "failing": self.failing}


def make_logged_state(
    evaluator: Evaluator,
    trials: int = 12,
    *,
    budgets: tuple[int, ...] = (),
    seed: int = 3,
    pending: int = 0,
    writer: Strategy | None = None,
) -> StudyState:
    """The state of a study whose log another strategy wrote, with some trials still running.

    Args:
        writer: what proposed the trials; default: random plans.
    """
    writer = writer or RandomStrategy()
    state = StudyState(
        evaluator.space, (), evaluator.sensitivities(), budgets, seed, 60.0, evaluator.fidelities
    )
    with TrialLog() as log:
        while len(log) < trials + pending:
            proposals = writer.propose(replace(state, trials=log.trials), 1)
            if not proposals:
                break
            trial = log.propose(proposals[0])
            if len(log) <= trials:
                try:
                    p = trial.proposal
                    log.finish(trial.id, evaluator.evaluate(p.plan, fidelity=p.fidelity, seed=p.seed))
                except EvaluationFailed as error:
                    log.fail(trial.id, str(error))
        return replace(state, trials=log.trials)


def interpolate_budgets(space: SearchSpace, *shares: float) -> tuple[int, ...]:
    """Bytes at these shares of the way from the smallest to the largest plan."""
    return tuple(
        int(space.memory.minimum + s * (space.memory.maximum - space.memory.minimum)) for s in shares
    )


SCENARIOS: dict[str, dict[str, Any]] = {
    "an empty log": {"trials": 0},
    "a log that another strategy wrote": {},
    "no named budget": {"trials": 30, "shares": ()},
    "a budget that only the smallest plan fits": {"trials": 0, "shares": (0.0,)},
    "pending trials": {"pending": 4},
    "failed trials": {"failing": 0.4},
    "nothing but failed trials": {"trials": 6, "failing": 1.0},
    "no sensitivities": {"sensitivities": None},
    "sensitivities of zeros": {"sensitivities": "zero"},
    "two fidelities": {"fidelities": (0.25, 1.0)},
    "two fidelities and an empty log": {"trials": 0, "fidelities": (0.25, 1.0)},
    "one layer": {"trials": 3, "space": {"layers": 1}},
    "ninety-six layers": {"space": {"layers": 96}},
    "one plan in all, tried": {
        "trials": 1,
        "shares": (),
        "space": {"layers": 3, "bits": (4,), "ranks": (8,)},
    },
    "groups with fewer choices": {"space": {"restricted": True}},
    "a table beside the linears": {"space": {"table": True}},
    "two ways to store a width": {"space": {"bits": DOUBLY_STORED_BITS}},
    "no adapter and no quantization among the choices": {"space": {"bits": (2, 4, 16), "ranks": (0, 8)}},
}
"""The states that every strategy must cope with, by name: trials in the log, `shares` for `interpolate_budgets`, and
what `make_toy_space` and `ToyEvaluator` are called with; see `scenario`."""

EXHAUSTED_SCENARIO = "one plan in all, tried"
"""The scenario in which nothing new is left to propose."""


@cache
def scenario(name: str) -> StudyState:
    options = {"trials": 12, "pending": 0, "shares": (0.3, 0.6), "space": {}, **SCENARIOS[name]}
    trials, pending, shares, space = (options.pop(key) for key in ("trials", "pending", "shares", "space"))
    evaluator = ToyEvaluator(make_toy_space(**space), **options)
    return make_logged_state(
        evaluator, trials, budgets=interpolate_budgets(evaluator.space, *shares), pending=pending
    )


def disturb_global_randomness() -> None:
    """Moves on every global generator that a careless strategy or evaluator might draw from."""
    random.random()
    np.random.random()
    if "torch" in sys.modules:
        sys.modules["torch"].rand(1)
