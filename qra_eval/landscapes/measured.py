"""What was measured on a real model, and the constants fitted to it: the scale of every parametric landscape.

Model and task: SmolLM2-135M (30 layers), GSM8K, held-out loss in nats on the answer tokens of 32 test rows, hqq
with groups of 64 weights. Tuning is 12 AdamW steps of 8 rows, alpha twice the rank, on all seven linears.
The fitted constants come from 41 tuned plans (`benchmarks/strategies/calibrate.py` at commit 660ca9b; the held-out
error was 0.034 nats root mean square, leave one out, for plans below 2.2 nats).
"""

from __future__ import annotations

import numpy as np

from qra_search.space.memory import UNQUANTIZED_BITS

UNTUNED = 1.6261
"""Loss of the undegraded model without any tuning."""

LAYER_LOSSES = (
    (1.8315, 1.6201),
    (2.0321, 1.5881),
    (2.5931, 1.6994),
    (2.1229, 1.6965),
    (1.8648, 1.6227),
    (2.0060, 1.6672),
    (1.8457, 1.6098),
    (2.2090, 1.6383),
    (1.9649, 1.6935),
    (2.2992, 1.6576),
    (2.0708, 1.6754),
    (2.6966, 1.7128),
    (2.1299, 1.6687),
    (2.1916, 1.6961),
    (2.0799, 1.6690),
    (1.9438, 1.6744),
    (2.3680, 1.7738),
    (2.2923, 1.6939),
    (2.2267, 1.6945),
    (2.4456, 1.6654),
    (2.0791, 1.6674),
    (2.0046, 1.6817),
    (1.9624, 1.6619),
    (2.1308, 1.6687),
    (1.8275, 1.6371),
    (1.7306, 1.6437),
    (1.7932, 1.6470),
    (1.7553, 1.6468),
    (1.7843, 1.6447),
    (2.3963, 1.7372),
)
"""Untuned losses with one of the 30 layers at 2 bits, and at 3."""

KIND_LOSSES = {
    "q_proj": (2.3351, 1.7499),
    "k_proj": (2.1294, 1.7025),
    "v_proj": (5.8458, 1.9855),
    "o_proj": (1.9852, 1.6841),
    "gate_proj": (2.4935, 1.6971),
    "up_proj": (2.8117, 1.7793),
    "down_proj": (4.7615, 1.9634),
}
"""Untuned losses with one kind of module at 2 bits in all layers, and at 3."""

GAIN = 0.613
"""Fall of the loss by tuning at unbounded rank, nothing quantized."""
GAIN_RANK = 1.669
"""Rank at which half of `GAIN` is reached: gain(r) = GAIN r / (r + GAIN_RANK)."""
REPAIR_POWER = 0.386
REPAIR_RANK = 1.340
"""Share of the untuned damage that tuning leaves: (1 + r / REPAIR_RANK) ** -REPAIR_POWER; 0.50 at rank 8."""
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

DAMAGE_2, _RAW_3 = np.array(LAYER_LOSSES).T - UNTUNED
DAMAGE_3 = np.maximum(
    SHRINK_3 * _RAW_3 + (1 - SHRINK_3) * DAMAGE_2 * _RAW_3.sum() / DAMAGE_2.sum(), LEAST_DAMAGE
)
"""Untuned damage (30,) of single layers at 2 and 3 bits."""


def compute_layer_damage(bits: int) -> np.ndarray:
    if bits >= UNQUANTIZED_BITS:
        return np.zeros_like(DAMAGE_2)
    if bits >= 4:
        return DAMAGE_3 * FOUR_BITS * 4.0 ** (4 - bits)
    return DAMAGE_3 if bits == 3 else DAMAGE_2 if bits == 2 else DAMAGE_2 * ONE_BIT


def compute_kind_shares(bits: int) -> dict[str, float]:
    """Share of a layer's damage that each of its seven linears causes (they sum to 1)."""
    losses = {kind: pair[0 if bits <= 2 else 1] for kind, pair in KIND_LOSSES.items()}
    total = sum(losses.values()) - len(losses) * UNTUNED
    return {kind: (loss - UNTUNED) / total for kind, loss in losses.items()}
