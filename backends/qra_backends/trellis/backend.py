"""Backend `trellis`: about 0.05 bits more than a level's name says, and 17% more squared error than must be.

Tseng et al., QTIP: Quantization with Trellises and Incoherence Processing, arXiv 2406.11235; with one sequence for each
input and error feedback input by input, where theirs are tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qra_backends import kernels
from qra_backends.base import Backend, Level
from qra_backends.calibration import check_damping, check_hessian, check_output_weights
from qra_backends.reference.gptq import factorize
from qra_backends.storage import Expected, count_block_bytes
from qra_backends.trellis.code import TrellisCode, choose_block
from qra_backends.trellis.linear import SCALE_DTYPE, TrellisLinear

HALF_BITS: dict[Level, int] = {
    1: 2,
    "trellis-1.5": 3,
    2: 4,
    "trellis-2.5": 5,
    3: 6,
    "trellis-3.5": 7,
    4: 8,
    "trellis-4.5": 9,
    5: 10,
}
"""Every level with its bits times two."""
PROBE_CODE = TrellisCode(half_bits=4, L=8)
"""The short encoding that foretells what every level costs: one law holds for all linears."""
DAMAGE_RATIOS = {2: 3.69, 3: 1.63, 4: 0.780, 5: 0.394, 6: 0.200, 7: 0.103, 8: 0.0537, 9: 0.0287, 10: 0.0153}
"""Damage of each level with states of 12 bits, by bits times two, over that of the probe.

Geometric means over 70 linears of SmolLM2 on Banking77 (benchmarks/results/study/damage.jsonl), from which linears
deviate in logarithms by 0.13 at 1 bit, 0.10 at 5 and 0.06 to 0.07 between. That of 4.5 bits lies between those of its
neighbours. States of other lengths change all levels by nearly the same factor, which no choice between levels needs.
"""
MIN_L, MAX_L = 10, 16
MAX_BLOCK = 1024
_BLOCKS = 12 << 20  # bytes of a block of rows, and of the ways back of a column: see `viterbi.PIECE`


class TrellisBackend(Backend):
    """Streams of 1 to 5 bits a weight, L - K bits more a column, and a 16-bit scale a row. Takes any shape.

    Without calibration data, say so with `hessian=torch.eye(in_features)`.

    Args:
        L: bits of a state. With 10 the squared error is 5 to 20% larger than with 12, with 14 it is 3 to 9% smaller;
            quantizing takes time in proportion to 2^L.
        block: inputs that are rotated together at most, a power of two; 1: none are.
        damping: share of the Hessian's mean diagonal that is added to its diagonal; more trusts the data less.
    """

    name: ClassVar[str] = "trellis"
    calibrated = True
    side_by_side = True
    layer = TrellisLinear
    largest = torch.finfo(SCALE_DTYPE).max
    trained = ("scale",)
    bits = tuple(HALF_BITS)

    def __init__(self, *, L: int = 12, block: int = 256, damping: float = 0.03):
        if type(L) is not int or not MIN_L <= L <= MAX_L:
            raise ValueError(
                f"option 'L' of backend 'trellis' must be an integer from {MIN_L} to {MAX_L}, got {L!r}"
            )
        if type(block) is not int or not 1 <= block <= MAX_BLOCK or block & (block - 1):
            raise ValueError(
                f"option 'block' of backend 'trellis' must be a power of two up to {MAX_BLOCK}, got {block!r}"
            )
        check_damping(damping)
        self.L, self.block, self.damping = L, block, damping
        self.options = {"L": L, "block": block, "damping": damping}

    def make_code(self, bits: Level) -> TrellisCode:
        return TrellisCode(HALF_BITS[bits], self.L)

    def describe_tensors(self, bits: Level, out_features: int, in_features: int) -> Expected:
        return {
            "codes": ((self.make_code(bits).stream_bytes(out_features), in_features), torch.uint8),
            "scale": ((out_features, 1), SCALE_DTYPE),
        }

    def width(self, bits: Level) -> float:
        self.check_bits(bits)
        return bits if isinstance(bits, int) else HALF_BITS[bits] / 2

    def probe_levels(
        self, linear: nn.Linear, levels: Sequence[Level], **calibration: Tensor | None
    ) -> list[tuple[nn.Module, dict[Level, float]]]:
        """One encoding for all levels, with states so short that it takes a sixteenth of one level's time."""
        modules = _ProbeBackend(**self.options).quantize_levels(linear, levels[:1], **calibration)
        return [
            (module, {bits: DAMAGE_RATIOS[HALF_BITS[bits]] for bits in levels}) for module in modules.values()
        ]

    def encode_levels(
        self, weight: Tensor, levels: Sequence[Level], hessian: Tensor | None, output_weights: Tensor | None
    ) -> dict[Level, dict[str, Tensor]]:
        """The tensors of each level, which share the rotation and the factor."""
        # It brings numba, which takes a second to import.
        from qra_backends.trellis.encode import choose_device, encode, rotate_rows

        device, weight = weight.device, weight.to(choose_device(weight))
        hessian = check_hessian(self.name, hessian, weight).float()
        weights = check_output_weights(output_weights, weight)
        block = choose_block(weight.shape[1], self.block)
        hessian = rotate_rows(rotate_rows(hessian, block).T, block)
        factor = factorize(hessian, self.damping)
        hessian.diagonal().add_(self.damping * hessian.diagonal().mean())
        made = {}
        for bits in levels:
            tensors = encode(weight, self.make_code(bits), block, hessian, factor, weights)
            made[bits] = {name: tensor.to(device) for name, tensor in tensors.items()}
        return made

    def count_work_bytes(
        self, levels: Sequence[Level], out_features: int, in_features: int, dtype: torch.dtype, device: str
    ) -> int:
        # Matrices while the rotated Hessian is factorized; the columns of one level.
        matrix, columns = 4 * in_features**2, 4 * out_features * in_features
        if device == "cpu":
            return 4 * matrix + columns + _BLOCKS
        if torch.cuda.is_available() and not kernels.are_kernels_usable(torch.device(device)):
            return 0  # there is no compiler: it is quantized on the host, see `encode.choose_device`
        # Of the Hessian itself and its factor, the columns, and rows as they are rotated, or fitted to.
        blocks = count_block_bytes(out_features * in_features, device, 5)
        return max(4 * matrix, 2 * matrix + columns + blocks)

    def make_module(self, tensors: dict[str, Tensor], bits: Level, **form: Any) -> TrellisLinear:
        block = choose_block(form["in_features"], self.block)
        return TrellisLinear(tensors, code=self.make_code(bits), block=block, **form)


class _ProbeBackend(TrellisBackend):
    """Has the code of a probe at every level."""

    def make_code(self, bits: Level) -> TrellisCode:
        return PROBE_CODE
