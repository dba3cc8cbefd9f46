"""What was measured on a real model, and the constants fitted to it: the scale of every parametric landscape.

`HQQ` is what seven families stand on, `GPTQ` what the family `calibrated` does; see each. Of the first:

Model and task: SmolLM2-135M (30 layers), GSM8K, held-out loss in nats on the answer tokens of 32 test rows, hqq
with groups of 64 weights. Tuning is 12 AdamW steps of 8 rows, alpha twice the rank, on all seven linears.
The fitted constants come from 41 tuned plans (`benchmarks/strategies/calibrate.py` at commit 660ca9b; the held-out
error was 0.034 nats root mean square, leave one out, for plans below 2.2 nats).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qra_search.space.memory import UNQUANTIZED_BITS

UNTUNED = 1.6261
"""Loss of the undegraded model without any tuning."""

LAYER_LOSS_2 = (
    1.8315, 2.0321, 2.5931, 2.1229, 1.8648, 2.0060, 1.8457, 2.2090, 1.9649, 2.2992,
    2.0708, 2.6966, 2.1299, 2.1916, 2.0799, 1.9438, 2.3680, 2.2923, 2.2267, 2.4456,
    2.0791, 2.0046, 1.9624, 2.1308, 1.8275, 1.7306, 1.7932, 1.7553, 1.7843, 2.3963,
)  # fmt: skip
"""Untuned loss with one of the 30 layers at 2 bits."""

LAYER_LOSS_3 = (
    1.6201, 1.5881, 1.6994, 1.6965, 1.6227, 1.6672, 1.6098, 1.6383, 1.6935, 1.6576,
    1.6754, 1.7128, 1.6687, 1.6961, 1.6690, 1.6744, 1.7738, 1.6939, 1.6945, 1.6654,
    1.6674, 1.6817, 1.6619, 1.6687, 1.6371, 1.6437, 1.6470, 1.6468, 1.6447, 1.7372,
)  # fmt: skip
"""Untuned loss with one layer at 3 bits."""

KIND_LOSS_2 = {
    "q_proj": 2.3351, "k_proj": 2.1294, "v_proj": 5.8458, "o_proj": 1.9852,
    "gate_proj": 2.4935, "up_proj": 2.8117, "down_proj": 4.7615,
}  # fmt: skip
"""Untuned loss with one kind of module at 2 bits in all layers."""

KIND_LOSS_3 = {
    "q_proj": 1.7499, "k_proj": 1.7025, "v_proj": 1.9855, "o_proj": 1.6841,
    "gate_proj": 1.6971, "up_proj": 1.7793, "down_proj": 1.9634,
}  # fmt: skip
"""Untuned loss with one kind of module at 3 bits in all layers."""

GAIN = 0.613
"""Fall of the loss by tuning at unbounded rank, nothing quantized."""
GAIN_RANK = 1.669
"""Rank at which half of `GAIN` is reached: gain(r) = GAIN r / (r + GAIN_RANK)."""
REPAIR_POWER = 0.386
REPAIR_RANK = 1.340
"""Share of the untuned damage that tuning leaves: left(r) = (1 + r / REPAIR_RANK) ** -REPAIR_POWER; 0.50 at rank 8."""
FOUR_BITS = 0.121
"""Damage at 4 bits as a share of that at 3 bits; every further bit divides the error's variance by four."""
ONE_BIT = 11.0
"""Damage at 1 bit as a multiple of that at 2 bits: taken to be the measured ratio of 2 to 3 bits."""
SHRINK_3 = 0.53
"""Weight of the measured damage at 3 bits; the rest is what the damage at 2 bits predicts (single layers at 3 bits
are measured with an error of about the damage itself)."""
LEAST_DAMAGE = 0.004
CAP = 18.22
"""Losses of broken plans saturate: rise = CAP (1 - exp(-damage / CAP))."""
SEED_NOISE = 0.0047
"""Standard deviation between seeds of one plan (uniform 3-bit, rank 8, three seeds)."""

DAMAGE_2 = np.array(LAYER_LOSS_2) - UNTUNED
_RAW_3 = np.array(LAYER_LOSS_3) - UNTUNED
DAMAGE_3 = np.maximum(SHRINK_3 * _RAW_3 + (1 - SHRINK_3) * DAMAGE_2 * _RAW_3.sum() / DAMAGE_2.sum(), LEAST_DAMAGE)
"""Untuned damage (30,) of single layers at 2 and 3 bits."""


def damage_by_bits(two: np.ndarray, three: np.ndarray, bits: int) -> np.ndarray:
    """Untuned damage at any bit-width from that at 2 and at 3 bits."""
    if bits >= 16:
        return np.zeros_like(two)
    if bits >= 4:
        return three * FOUR_BITS * 4.0 ** (4 - bits)
    return three if bits == 3 else two if bits == 2 else two * ONE_BIT


def kind_share(bits: int) -> dict[str, float]:
    """Share of a layer's damage that each of its seven linears causes (they sum to 1)."""
    losses = KIND_LOSS_2 if bits <= 2 else KIND_LOSS_3
    total = sum(losses.values()) - len(losses) * UNTUNED
    return {kind: (loss - UNTUNED) / total for kind, loss in losses.items()}


@dataclass(frozen=True)
class Source:
    """Measurements that landscapes are scaled by.

    Attributes:
        untuned: loss without quantization and without tuning.
        by_layer: untuned damage of single layers, in nats, by bits; between measured bits its logarithm is
            interpolated.
        by_kind: share of each of a layer's linears in it, by bits.
        gain, gain_rank: fall of the loss by tuning at unbounded rank, and the rank at which half of it is reached.
        repair_power, repair_rank: share of the damage that tuning leaves: (1 + r / repair_rank) ** -repair_power.
        noise: deviation between seeds in nats.
    """

    untuned: float
    by_layer: Mapping[int, np.ndarray]
    by_kind: Mapping[int, Mapping[str, float]]
    gain: float
    gain_rank: float
    repair_power: float
    repair_rank: float
    noise: float

    @property
    def layers(self) -> int:
        """How many layers were measured."""
        return len(next(iter(self.by_layer.values())))

    def damage(self, bits: int) -> np.ndarray:
        """Untuned damage (layers,) of each layer at a bit-width."""
        if bits >= UNQUANTIZED_BITS:
            return np.zeros(self.layers)
        known = sorted(self.by_layer)
        low = max((b for b in known[:-1] if b <= bits), default=known[0])
        high = known[known.index(low) + 1]
        share = (bits - low) / (high - low)
        return np.asarray(self.by_layer[low] ** (1 - share) * self.by_layer[high] ** share)

    def kind_share(self, bits: int) -> Mapping[str, float]:
        """Share of a layer's damage that each of its linears causes, at the nearest measured bit-width."""
        return self.by_kind[min(self.by_kind, key=lambda known: (abs(known - bits), known))]

    def gain_at(self, rank: np.ndarray) -> np.ndarray:
        """Fall of the loss in nats if every group had this rank and nothing were quantized."""
        rank = np.asarray(rank, dtype=float)
        return self.gain * rank / (rank + self.gain_rank)

    def left(self, rank: np.ndarray, power: np.ndarray | float) -> np.ndarray:
        """Share of the untuned damage that is left after tuning at this rank; 1 without an adapter."""
        return (1.0 + np.asarray(rank, dtype=float) / self.repair_rank) ** -np.asarray(power)


HQQ = Source(
    untuned=UNTUNED,
    by_layer={b: damage_by_bits(DAMAGE_2, DAMAGE_3, b) for b in range(1, UNQUANTIZED_BITS)},
    by_kind={2: kind_share(2), 3: kind_share(3)},
    gain=GAIN,
    gain_rank=GAIN_RANK,
    repair_power=REPAIR_POWER,
    repair_rank=REPAIR_RANK,
    noise=SEED_NOISE,
)
"""hqq, one choice a layer, alpha twice the rank; see above."""

GPTQ = Source(
    untuned=1.204,
    by_layer={
        2: np.array((
            0.0128, 0.0101, 0.00975, 0.00898, 0.00912, 0.00781, 0.00832, 0.0071, 0.0105, 0.00907, 0.00972, 0.014,
            0.00924, 0.00973, 0.0126, 0.0102, 0.0143, 0.0165, 0.0165, 0.0132, 0.0204, 0.0101, 0.0119, 0.0183,
            0.0106, 0.00631, 0.00717, 0.00603, 0.0078, 0.0204,
        )),
        3: np.array((
            0.00257, 0.00233, 0.0021, 0.00199, 0.00205, 0.00192, 0.002, 0.00202, 0.00249, 0.00226, 0.00254, 0.0035,
            0.00245, 0.00248, 0.00282, 0.0026, 0.00316, 0.00338, 0.00413, 0.00307, 0.00441, 0.00237, 0.00308,
            0.0046, 0.00253, 0.00155, 0.00176, 0.00162, 0.00179, 0.00507,
        )),
        4: np.array((
            0.000585, 0.000488, 0.000526, 0.000439, 0.000446, 0.000409, 0.000428, 0.000441, 0.000515, 0.000475,
            0.000542, 0.000717, 0.000508, 0.000531, 0.000623, 0.000519, 0.000628, 0.000779, 0.000898, 0.000671,
            0.000955, 0.000528, 0.000638, 0.00096, 0.000548, 0.000331, 0.000378, 0.000325, 0.000374, 0.00115,
        )),
        8: np.array((
            6.47e-05, 5.68e-05, 0.000112, 5.18e-05, 5.03e-05, 3.73e-05, 4.9e-05, 4.63e-05, 5.43e-05, 7.64e-05,
            5.26e-05, 0.000291, 6.25e-05, 7.07e-05, 8.82e-05, 6.55e-05, 8.55e-05, 7e-05, 9.71e-05, 0.000111,
            0.000119, 5.54e-05, 6.43e-05, 8.95e-05, 5.11e-05, 2.32e-05, 2.75e-05, 2.72e-05, 4.6e-05, 0.00019,
        )),
    },
    by_kind={
        2: {
            "q_proj": 0.0652, "k_proj": 0.1215, "v_proj": 0.1236, "o_proj": 0.0622, "gate_proj": 0.1783,
            "up_proj": 0.2447, "down_proj": 0.2044,
        },
        3: {
            "q_proj": 0.0640, "k_proj": 0.1109, "v_proj": 0.1220, "o_proj": 0.0610, "gate_proj": 0.1787,
            "up_proj": 0.2515, "down_proj": 0.2118,
        },
        4: {
            "q_proj": 0.0598, "k_proj": 0.1119, "v_proj": 0.1260, "o_proj": 0.0624, "gate_proj": 0.1745,
            "up_proj": 0.2502, "down_proj": 0.2152,
        },
        8: {
            "q_proj": 0.0713, "k_proj": 0.1310, "v_proj": 0.1482, "o_proj": 0.0503, "gate_proj": 0.1085,
            "up_proj": 0.1592, "down_proj": 0.3315,
        },
    },
    gain=0.024,
    gain_rank=0.19,
    repair_power=0.017,
    repair_rank=1.96,
    noise=SEED_NOISE,
)  # fmt: skip
"""This project's GPTQ, groups of 64 (int8 at 8 bits), and one alpha for all ranks: the surrogate fitted to the study's
search of 210 modules (`benchmarks/strategies/calibrate.py --modules` at commit 660ca9b). Losses of that search are of tuned plans, so the damage is what 12 steps leave. Rank hardly matters, and uniform 3 bits lose
0.08 nats, an eighth of what they lose with hqq."""
