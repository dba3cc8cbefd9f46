"""The short encoding that foretells what every level of a trellis code costs: one law holds for all linears."""

from qra_backends.trellis.code import TrellisCode

PROBE = TrellisCode(half_bits=4, L=8)
DAMAGE_RATIOS = {2: 3.3, 3: 1.75, 4: 0.8, 5: 0.43, 6: 0.22, 7: 0.11, 8: 0.055, 9: 0.028, 10: 0.014}
"""Damage of each level with states of 12 bits, by bits times two, over that of the probe."""
