"""The families of landscapes: the space that one is of, how its tables are drawn, and the loss that they give.

Loss of a plan, in nats, with t_g = left_g(b, r) damage_g(b), the damage of group g that tuning leaves:

    loss = untuned - sum_g w_g gain(r_g) + rise(x)
    x    = sum_g t_g + sum_layers within_l + sum_{l<m} K_lm S_l S_m,     S_l^2 = sum of t over layer l
    within_l = (sum_g v_g sqrt(t_g))^2 - sum_g v_g^2 t_g
    rise(x) = cap (1 - exp(-x / cap))

Every family shares what was measured on a real model, and differs in what breaks additivity and in the sensitivities. A
single group's loss (all others unquantized) is never touched by an interaction.

The measurements are of SmolLM2-135M (30 layers) on GSM8K: held-out loss in nats on the answer tokens of 32 test rows,
hqq with groups of 64 weights. Tuning is 12 AdamW steps of 8 rows, alpha twice the rank, on all seven linears.
The fitted constants come from 41 tuned plans (`benchmarks/strategies/calibrate.py` at commit 660ca9b; the held-out
error was 0.034 nats root mean square, leave one out, for plans below 2.2 nats).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qra_search.schemas import Group, Linear
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import DEFAULT_BITS, DEFAULT_RANKS, SearchSpace

UNTUNED_LOSS = 1.6261
"""Loss of the undegraded model without any tuning."""

MEASURED_LOSSES = json.loads((Path(__file__).parent / "data" / "smollm2-losses.json").read_text())
"""Untuned losses: with one of the 30 layers at 2 bits, and at 3; and with one kind of module at 2 and 3 bits in all."""

MAX_GAIN = 0.613
"""Fall of the loss by tuning at unbounded rank, nothing quantized."""
GAIN_RANK = 1.669
"""Rank at which half of `MAX_GAIN` is reached: gain(r) = MAX_GAIN r / (r + GAIN_RANK)."""
REPAIR_POWER = 0.386
REPAIR_RANK = 1.340
"""Share of the untuned damage that tuning leaves: (1 + r / REPAIR_RANK) ** -REPAIR_POWER; 0.50 at rank 8."""
DAMAGE_RATIO_4 = 0.121
"""Damage at 4 bits as a share of that at 3 bits; every further bit divides the error's variance by four."""
DAMAGE_RATIO_1 = 11.0
"""Damage at 1 bit as a multiple of that at 2 bits: taken to be the measured ratio of 2 to 3 bits."""
MEASURED_WEIGHT_3 = 0.53
"""Weight of the measured damage at 3 bits; the rest is what the damage at 2 bits predicts (single layers at 3 bits
are measured with an error of about the damage itself)."""
MIN_DAMAGE = 0.004
LOSS_CAP = 18.22
"""Losses of broken plans saturate: rise = LOSS_CAP (1 - exp(-damage / LOSS_CAP))."""
SEED_NOISE = 0.0047
"""Standard deviation between seeds of one plan (uniform 3-bit, rank 8, three seeds)."""

DAMAGE_2 = np.array(MEASURED_LOSSES["layers"]["2"]) - UNTUNED_LOSS
_RAW_3 = np.array(MEASURED_LOSSES["layers"]["3"]) - UNTUNED_LOSS
DAMAGE_3 = np.maximum(
    MEASURED_WEIGHT_3 * _RAW_3 + (1 - MEASURED_WEIGHT_3) * DAMAGE_2 * _RAW_3.sum() / DAMAGE_2.sum(),
    MIN_DAMAGE,
)
"""Untuned damage (30,) of single layers at 2 and 3 bits."""

HIDDEN, QUERIES, KEYS, INNER = 576, 576, 192, 1536
"""Widths of one layer: residual stream, query heads together, key heads together, feed-forward."""
LINEARS = {
    "q_proj": ("self_attn", QUERIES, HIDDEN),
    "k_proj": ("self_attn", KEYS, HIDDEN),
    "v_proj": ("self_attn", KEYS, HIDDEN),
    "o_proj": ("self_attn", HIDDEN, QUERIES),
    "gate_proj": ("mlp", INNER, HIDDEN),
    "up_proj": ("mlp", INNER, HIDDEN),
    "down_proj": ("mlp", HIDDEN, INNER),
}
"""Kind to the block that it is in, and its features out and in."""
KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "module": {kind: (kind,) for kind in LINEARS},
    "fused": {
        "qkv": ("q_proj", "k_proj", "v_proj"),
        "o_proj": ("o_proj",),
        "gate_up": ("gate_proj", "up_proj"),
        "down_proj": ("down_proj",),
    },
    "layer": {"layer": tuple(LINEARS)},
}
"""Granularity to the kinds of its groups, each with the linears that it holds."""

DEPTH_JITTER = 3
"""A layer takes the measured damage of a real layer at most so many places away."""
LAYER_SPREAD = 0.25
MODULE_SPREAD = 0.5
REPAIR_SPREAD = 0.25
GAIN_SPREAD = 0.4
"""Standard deviations of the log of: a layer's damage, a module's damage, a group's repair power, a group's share
of the gain. None was measured per group; they are of the size that the fit leaves unexplained."""

MIN_EIGENVALUE = -1.6
LOW_FIDELITY_SPREAD = 0.15
"""Standard deviation of the log by which damage differs at low fidelity: other rows, other steps."""


@dataclass(frozen=True)
class Family:
    """What sets a family apart.

    Attributes:
        within: bound of |v|, the coupling of the modules of a layer.
        neighbours: mean and deviation of K for neighbouring layers.
        cap: of `rise`, which is the identity if this is infinite.
        prior_tilt: log-error of the sensitivities from the first to the last layer; systematic, not random.
        prior_kinds: whether the sensitivities tell kinds of modules apart, or take all weights of a layer alike.
    """

    within: float = 0.0
    neighbours: tuple[float, float] = (0.0, 0.0)
    cap: float = LOSS_CAP
    prior_tilt: float = 0.0
    prior_kinds: bool = True


FAMILIES = {
    "additive": Family(cap=float("inf")),
    "interaction": Family(within=0.5, neighbours=(0.15, 0.4)),
    "misleading": Family(within=0.2, neighbours=(0.05, 0.1), prior_tilt=2.0, prior_kinds=False),
}
"""`benchmarks/strategies/README.md` says what each is for."""


@dataclass(frozen=True)
class LandscapeNumbers:
    """The drawn numbers of one landscape.

    Attributes:
        damage: (G, B), untuned damage of single groups, of which tuning leaves the share `left`, (G, B, R).
        gain: (G, R), fall of the loss that an adapter brings.
        within, coupling: (G,) and (L, L), v and K above.
        layer: int (G,), index of the layer; groups of a layer are consecutive.
        base: loss of the untouched model.
    """

    damage: np.ndarray
    left: np.ndarray
    gain: np.ndarray
    within: np.ndarray
    coupling: np.ndarray
    layer: np.ndarray
    base: float
    cap: float

    def compute_losses(self, codes: np.ndarray) -> np.ndarray:
        """Noise-free losses (N,) of encoded plans (N, 2, G)."""
        rows = np.arange(len(self.layer))
        b = codes[:, 0]
        r = codes[:, 1]
        t = self.damage[rows, b] * self.left[rows, b, r]
        x = t.sum(1)
        starts = np.flatnonzero(np.diff(self.layer, prepend=-1))
        if self.within.any():
            pull = np.add.reduceat(self.within * np.sqrt(t), starts, axis=1)
            x = x + (pull**2).sum(1) - (self.within**2 * t).sum(1)
        if self.coupling.any():
            size = np.sqrt(np.add.reduceat(t, starts, axis=1))
            x = x + 0.5 * ((size @ self.coupling) * size).sum(1)
        rise = x if np.isinf(self.cap) else self.cap * -np.expm1(-x / self.cap)
        return self.base - self.gain[rows, r].sum(1) + rise

    @property
    def is_additive(self) -> bool:
        return bool(np.isinf(self.cap)) and not (self.within.any() or self.coupling.any())

    def build_additive_table(self) -> np.ndarray:
        """float (G, B, R): each choice's own share of the loss; exact where the loss is additive."""
        return self.damage[:, :, None] * self.left - self.gain[:, None, :]

    def lower_fidelity(self, fidelity: float, rng: np.random.Generator) -> LandscapeNumbers:
        """The landscape that a cheaper evaluation sees: less gain, less repair, other damage. Biased, correlated."""
        if fidelity >= 1.0:
            return self
        done = np.sqrt(fidelity)
        wrong = np.exp(rng.normal(0.0, LOW_FIDELITY_SPREAD, self.damage.shape))
        return replace(
            self, damage=self.damage * wrong, left=1.0 - (1.0 - self.left) * done, gain=self.gain * done
        )


def make_generator(*key: Any) -> np.random.Generator:
    """A generator that is a function of its key, on any machine."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def make_space(
    layers: int = 32,
    granularity: str = "layer",
    *,
    bits: tuple[int, ...] = DEFAULT_BITS,
    ranks: tuple[int, ...] = DEFAULT_RANKS,
) -> SearchSpace:
    """The exact search space of a decoder with this many layers."""
    if layers < 1:
        raise ValueError(f"a landscape needs at least 1 layer, got {layers}")
    if granularity not in KINDS:
        raise ValueError(
            f"the granularity of a landscape must be one of {', '.join(KINDS)}, got {granularity!r}"
        )
    groups = []
    for depth in range(layers):
        linears = {
            kind: Linear(name=f"model.layers.{depth}.{block}.{kind}", out_features=out, in_features=in_)
            for kind, (block, out, in_) in LINEARS.items()
        }
        for kind, members in KINDS[granularity].items():
            name = f"layers.{depth}" if granularity == "layer" else f"layers.{depth}.{kind}"
            groups.append(
                Group(name=name, linears=tuple(linears[m] for m in members), kind=kind, depth=depth)
            )
    return SearchSpace(groups=tuple(groups), bits=bits, ranks=ranks)


def draw_tables(
    family: Family, space: SearchSpace, granularity: str, rng: np.random.Generator
) -> LandscapeNumbers:
    """The numbers of a landscape of this family on a space of `make_space`.

    Some numbers are drawn and not used, as recorded rows are of landscapes that follow from the order of draws.
    """
    layer = np.array([group.depth for group in space.groups])
    layers = int(layer.max()) + 1
    groups = len(layer)
    ranks = np.array(space.ranks, dtype=float)
    damage = _draw_group_damage(space, granularity, layer, layers, rng)
    power = REPAIR_POWER * np.exp(rng.normal(0.0, REPAIR_SPREAD, groups))
    left = ((1.0 + ranks / REPAIR_RANK) ** -power[:, None])[:, None, :]
    rng.random(groups)
    weight = np.exp(rng.normal(0.0, GAIN_SPREAD, groups))
    gain = (weight / weight.sum())[:, None] * (MAX_GAIN * ranks / (ranks + GAIN_RANK))
    within = rng.uniform(-0.5, 1.0, groups) * family.within if groups > layers else np.zeros(groups)
    return LandscapeNumbers(
        damage=damage,
        left=np.broadcast_to(left, (groups, len(space.bits), len(ranks))),
        gain=gain,
        within=within,
        coupling=_draw_layer_interactions(family, layers, rng),
        layer=layer,
        base=UNTUNED_LOSS,
        cap=family.cap,
    )


def _draw_layer_interactions(family: Family, layers: int, rng: np.random.Generator) -> np.ndarray:
    """Symmetric (L, L) coupling of layers, scaled down where it could turn damage into gain.

    With S the roots of the layers' damage, the sum S'S + S'KS/2 stays positive while K's least eigenvalue is
    above -2; `MIN_EIGENVALUE` keeps it well away from there.
    """
    rng.standard_normal((layers, layers))
    coupling = np.diag(rng.normal(*family.neighbours, layers - 1), 1)
    coupling = coupling + coupling.T
    least = float(np.linalg.eigvalsh(coupling)[0])
    return coupling * min(1.0, MIN_EIGENVALUE / least) if least < 0 else coupling


def _draw_group_damage(
    space: SearchSpace, granularity: str, layer: np.ndarray, layers: int, rng: np.random.Generator
) -> np.ndarray:
    """Untuned damage (G, B): measured layers at about the same relative depth, split over kinds as measured.

    Totals are kept: with other than 30 layers each is scaled by 30 / layers.
    """
    real = len(DAMAGE_2)
    depth = np.round(np.arange(layers) / max(layers - 1, 1) * (real - 1)).astype(int)
    moved = depth + rng.integers(-DEPTH_JITTER, DEPTH_JITTER + 1, layers)
    # The last layer stands apart in the measurements, so it stays the last, and no other takes its place.
    taken = np.where(depth == real - 1, real - 1, np.clip(moved, 0, real - 2))
    scale = real / layers * np.exp(rng.normal(0.0, LAYER_SPREAD, layers))
    kinds = KINDS[granularity]
    spread = (
        np.exp(rng.normal(0.0, MODULE_SPREAD, len(layer))) if granularity != "layer" else np.ones(len(layer))
    )
    columns = []
    for bits in space.widths.tolist():
        share = compute_kind_shares(bits)
        of_kind = {kind: sum(share[m] for m in members) for kind, members in kinds.items()}
        part = np.array([of_kind[group.kind] for group in space.groups]) * spread
        columns.append((compute_layer_damage(bits)[taken] * scale)[layer] * part)
    return np.stack(columns, axis=1)


def compute_layer_damage(bits: int) -> np.ndarray:
    if bits >= UNQUANTIZED_BITS:
        return np.zeros_like(DAMAGE_2)
    if bits >= 4:
        return DAMAGE_3 * DAMAGE_RATIO_4 * 4.0 ** (4 - bits)
    return {1: DAMAGE_2 * DAMAGE_RATIO_1, 2: DAMAGE_2, 3: DAMAGE_3}[bits]


def compute_kind_shares(bits: int) -> dict[str, float]:
    """Share of a layer's damage that each of its seven linears causes (they sum to 1)."""
    losses = {kind: pair[0 if bits <= 2 else 1] for kind, pair in MEASURED_LOSSES["kinds"].items()}
    total = sum(losses.values()) - len(losses) * UNTUNED_LOSS
    return {kind: (loss - UNTUNED_LOSS) / total for kind, loss in losses.items()}
