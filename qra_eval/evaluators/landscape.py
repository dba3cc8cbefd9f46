"""Cheap evaluators for comparing search strategies: parametric landscapes, calibrated to a real model, by name."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from qra_eval.landscapes.families import (
    FAMILIES,
    SEED_NOISE,
    Family,
    LandscapeNumbers,
    draw_tables,
    make_generator,
    make_space,
)
from qra_eval.landscapes.reference import ReferenceFront, find_reference_front
from qra_search import plugins
from qra_search.app.config import RunConfig
from qra_search.errors import BadInput
from qra_search.evaluator import Evaluator
from qra_search.schemas import Evaluation, Plan, Sensitivities
from qra_search.space.space import DEFAULT_BITS, DEFAULT_RANKS, SearchSpace

PRIORS = ("measured", "flat", "shuffled", "none")
PRIOR_ERROR = 0.35
"""Log-error of every entry of measured sensitivities."""
PRIOR_COST = 1.5
"""Full evaluations that measured (or shuffled) sensitivities are charged: one backward pass over 16 train rows
and some ten measured groups, against 12 training steps of 8 rows and 32 validation rows."""
LOW_FIDELITY = 0.25


class Landscape(Evaluator):
    """A parametric loss over plans, with its noise-free truth at hand; `identity` is what `describe` says."""

    fidelities = (LOW_FIDELITY, 1.0)

    def __init__(
        self,
        tables: LandscapeNumbers,
        space: SearchSpace,
        *,
        sensitivities: Sensitivities | None = None,
        noise: float = SEED_NOISE,
        seed: int = 0,
        identity: dict[str, Any] | None = None,
    ):
        if not 0 <= noise < np.inf:
            raise BadInput(
                f"option 'noise' of the landscape evaluator must be a finite number from 0 on, got {noise!r}"
            )
        self.tables = tables
        self.space = space
        self.noise = noise
        self.seed = seed
        self._sensitivities = sensitivities
        self.identity = dict(identity or {})

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        """The noisy loss; noise is a function of the landscape's seed, the plan, the fidelity and `seed` alone."""
        begun = time.perf_counter()
        code = self.space.encode(plan)
        seen = self.tables.lower_fidelity(fidelity, make_generator("fidelity", self.seed))
        loss = float(seen.compute_losses(code[None])[0])
        rng = make_generator("noise", self.seed, plan.key, fidelity, seed)
        loss += self.noise * np.sqrt(1.0 / fidelity) * float(rng.standard_normal())
        size = int(self.space.memory.bytes(code))
        return Evaluation(loss, size, seconds=time.perf_counter() - begun, fidelity=fidelity, seed=seed)

    def true_loss(self, plan: Plan) -> float:
        return float(self.tables.compute_losses(self.space.encode(plan)[None])[0])

    def find_reference_front(self, budgets: tuple[int, ...]) -> ReferenceFront:
        return find_reference_front(self.tables, self.space, budgets)

    def sensitivities(self) -> Sensitivities | None:
        return self._sensitivities

    def describe(self) -> dict[str, Any]:
        return self.identity


def make_landscape(
    family: str = "interaction",
    layers: int = 32,
    granularity: str = "layer",
    seed: int = 0,
    sensitivities: str = "measured",
    *,
    noise: float = SEED_NOISE,
    bits: tuple[int, ...] = DEFAULT_BITS,
    ranks: tuple[int, ...] = DEFAULT_RANKS,
) -> Landscape:
    """A landscape of a family (`qra_eval.landscapes.FAMILIES`), drawn by `seed`.

    Args:
        sensitivities: `measured`, the single-group damages with a random error of e^(+-0.35) an entry; `flat`, the same
            damage for every weight; `shuffled`, the measured ones with their groups permuted; `none`.
        noise: standard deviation between seeds, in nats.
    """
    if family not in FAMILIES:
        raise ValueError(f"the family of a landscape must be one of {', '.join(FAMILIES)}, got {family!r}")
    if sensitivities not in PRIORS:
        raise ValueError(
            f"the sensitivities of a landscape must be one of {', '.join(PRIORS)}, got {sensitivities!r}"
        )
    identity = {"landscape": family, "layers": layers, "granularity": granularity, "seed": seed}
    identity |= {"sensitivities": sensitivities, "noise": noise}
    traits = FAMILIES[family]
    space = make_space(layers, granularity, bits=bits, ranks=ranks)
    generator = make_generator("tables", family, seed, layers, granularity)
    tables = draw_tables(traits, space, granularity, generator)
    rng = make_generator("prior", family, seed)
    prior = _make_sensitivities(sensitivities, traits, tables, space, rng)
    return Landscape(tables, space, sensitivities=prior, noise=noise, seed=seed, identity=identity)


def build(config: RunConfig) -> Landscape:
    """The landscape that a config names: `options` are those of `make_landscape`."""
    bits = DEFAULT_BITS if config.space.bits == "auto" else config.space.bits
    granularity = "module" if config.space.granularity == "auto" else config.space.granularity
    given = {"granularity": granularity, "bits": bits, "ranks": config.space.ranks}
    made: Landscape = plugins.call_with_options(
        make_landscape, "the landscape evaluator", given | config.options
    )
    return made


def _make_sensitivities(
    kind: str, traits: Family, tables: LandscapeNumbers, space: SearchSpace, rng: np.random.Generator
) -> Sensitivities | None:
    if kind == "none":
        return None
    weights = np.array([group.weights for group in space.groups], dtype=float)
    share = (weights / weights.sum())[:, None]
    damage = tables.damage
    if kind == "flat":
        return Sensitivities(share * damage.sum(0), share * tables.gain.sum(0), cost=0.0, source="flat")
    if not traits.prior_kinds:
        of_layer = np.zeros((tables.layer.max() + 1, damage.shape[1]))
        np.add.at(of_layer, tables.layer, damage)
        size = np.bincount(tables.layer, weights)
        damage = of_layer[tables.layer] * (weights / size[tables.layer])[:, None]
    depth = tables.layer / max(tables.layer.max(), 1) - 0.5
    damage = damage * np.exp(traits.prior_tilt * depth)[:, None]
    damage = damage * np.exp(rng.normal(0.0, PRIOR_ERROR, damage.shape))
    damage = np.maximum.accumulate(damage[:, ::-1], axis=1)[:, ::-1]
    gain = tables.gain * np.exp(rng.normal(0.0, PRIOR_ERROR, (len(damage), 1)))
    if kind == "shuffled":
        order = rng.permutation(len(damage))
        damage, gain = damage[order], gain[order]
    return Sensitivities(damage, gain, cost=PRIOR_COST, source=kind)
