"""The short encoding that foretells what every level of a trellis code costs: one law holds for all linears."""

from qra_backends.trellis.code import TrellisCode

PROBE = TrellisCode(half_bits=4, L=8)
DAMAGE_RATIOS = {
    2: 3.69,
    3: 1.63,
    4: 0.780,
    5: 0.394,
    6: 0.200,
    7: 0.103,
    8: 0.0537,
    9: 0.0287,
    10: 0.0153,
}
"""Damage of each level with states of 12 bits, by bits times two, over that of the probe.

Geometric means over 70 linears of SmolLM2 on Banking77 (benchmarks/results/study/damage.jsonl), from which linears
deviate in logarithms by 0.13 at 1 bit, 0.10 at 5 and 0.06 to 0.07 between. That of 4.5 bits lies between those of its
neighbours. States of other lengths change all levels by nearly the same factor, which no choice between levels needs.
"""
