"""A mixture of experts as a landscape: the shapes of Qwen3-30B-A3B, one choice for every expert."""

from __future__ import annotations

import numpy as np

from qra_eval.evaluators.landscape import Landscape
from qra_eval.landscapes.families import LandscapeNumbers
from qra_search.schemas import Group, Linear, Sensitivities
from qra_search.space.space import SearchSpace

LAYERS, EXPERTS = 48, 128
HIDDEN, INNER = 2048, 768
ATTENTION = {
    "q_proj": (4096, HIDDEN),
    "k_proj": (512, HIDDEN),
    "v_proj": (512, HIDDEN),
    "o_proj": (HIDDEN, 4096),
}
EXPERT = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}

DAMAGE = 2.0
"""Untuned damage in nats with all groups at 2 bits; a sixteenth for every further 2 bits."""
USE_SPREAD = 1.2
"""Deviation of the log of an expert's share in it: routers use experts unevenly."""
GAIN = 0.6
PRIOR_ERROR = 0.35
"""Of the log of every entry, as the landscapes of `qra_eval` have it."""


def expert_space(layers: int = LAYERS, experts: int = EXPERTS) -> SearchSpace:
    """Attention linears alone, experts with their three linears: layers times (4 + experts) groups."""
    groups = []
    for depth in range(layers):
        path = f"model.layers.{depth}"
        for kind, shape in ATTENTION.items():
            linear = _linear(f"{path}.self_attn.{kind}", shape)
            groups.append(Group(name=linear.name, linears=(linear,), kind=kind, depth=depth))
        for expert in range(experts):
            name = f"{path}.mlp.experts.{expert}"
            linears = tuple(_linear(f"{name}.{kind}", shape) for kind, shape in EXPERT.items())
            groups.append(Group(name=name, linears=linears, kind="expert", depth=depth))
    return SearchSpace(groups=groups)


def expert_landscape(layers: int = LAYERS, experts: int = EXPERTS, seed: int = 0) -> Landscape:
    """A loss that adds up over groups and saturates, with its sensitivities: each entry wrong by a random factor."""
    space = expert_space(layers, experts)
    rng = np.random.default_rng(seed)
    groups = len(space)
    share = np.array([group.weights for group in space.groups]) * rng.lognormal(0.0, USE_SPREAD, groups)
    damage = DAMAGE * (share / share.sum())[:, None] * 4.0 ** (2.0 - space.widths)
    ranks = np.array(space.ranks, float)
    weight = rng.lognormal(0.0, 0.4, groups)
    gain = GAIN * (weight / weight.sum())[:, None] * ranks / (ranks + 2.0)
    left = (1.0 + ranks) ** -rng.lognormal(np.log(0.4), 0.25, (groups, 1, 1))
    tables = LandscapeNumbers(
        damage=damage,
        left=np.broadcast_to(left, (groups, len(space.bits), len(ranks))),
        gain=gain,
        within=np.zeros(groups),
        coupling=np.zeros((layers, layers)),
        layer=np.array([group.depth for group in space.groups]),
        base=1.6,
        cap=18.0,
    )
    wrong = (
        np.exp(rng.normal(0.0, PRIOR_ERROR, damage.shape)),
        np.exp(rng.normal(0.0, PRIOR_ERROR, (groups, 1))),
    )
    return Landscape(
        tables, space, sensitivities=Sensitivities(damage * wrong[0], gain * wrong[1], cost=1.5), seed=seed
    )


def _linear(name: str, shape: tuple[int, int]) -> Linear:
    return Linear(name=name, out_features=shape[0], in_features=shape[1])
