"""Backend `hqq`: half-quadratic quantization by the hqq library, which needs no calibration data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor

from qra_backends.base import Backend, explain_missing_library
from qra_backends.kernels import choice
from qra_backends.modules import DequantizedLinear
from qra_backends.storage import Expected, ceil_div, find_group_size

_SMALLEST_GROUP = 8  # the library's own limit
_GROUPS_A_BYTE = {2: 4, 4: 2}  # codes of so many groups are packed into one byte
_GROUPS_A_WORD = 10  # at 3 bits, ten groups are packed into 32-bit words; the last word is padded
_SMALL = 2**-5  # a weight below is brought to unit range before it is solved
_ROWS_AT_ONCE = 192  # the solver's arrays then stay in cache: about twice as fast as the whole weight
_COPIES = {2: 1.75, 3: 2.0, 4: 1.55, 8: 1.5}
"""Float32 copies of the weight at the peak of quantizing it, beside the result; measured with 2048 x 8192 on a CPU."""
_PACKING, _SOLVING = {2: 2.69, 3: 6.98, 4: 2.69, 8: 1.25}, 37
"""Bytes on a GPU, as counted: of a weight while its codes are packed; of each of the rows that are solved at once."""


class HQQLinear(DequantizedLinear):
    """A layer of the library's packed codes, and a scale and a zero point of 16 bits for every group."""

    bits: int
    group_size: int

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in) as the library computes it in the layer's own dtype, cast to `dtype`."""
        from hqq.core.quantize import Quantizer

        stored = self.tensors()
        meta = {
            "nbits": self.bits,
            "group_size": self.group_size,
            "shape": torch.Size((self.out_features, self.in_features)),
            "scale": stored["scale"],
            "zero": stored["zero"],
            "axis": 1,
            "packing": Quantizer.bit_to_packing[self.bits],
            "view_as_float": False,
            "compute_dtype": self.dtype,
        }
        if choice.is_usable(stored["W_q"].device):
            from qra_backends.libraries.hqq_triton import decode

            weight = decode(stored["W_q"], meta)
        else:
            weight = Quantizer.dequantize(stored["W_q"], meta)
        return weight.to(dtype or self.dtype)


class HQQBackend(Backend):
    """Codes with a scale and a zero point of 16 bits each for every group of a row, by minimizing a p-norm, p < 1.

    At 3 bits the library stores ten codes in 32 bits. Where `group_size` does not divide the row, the largest of its
    halves that does is used, so that no group crosses rows; the solver stops early for each block of rows on its own.

    Args:
        group_size: most weights of a row that share scale and zero point; a multiple of 8.
    """

    name: ClassVar[str] = "hqq"
    library: ClassVar[str | None] = "hqq"
    layer = HQQLinear
    bits = (2, 3, 4, 8)

    def __init__(self, *, group_size: int = 64):
        if type(group_size) is not int or group_size < _SMALLEST_GROUP or group_size % _SMALLEST_GROUP:
            raise ValueError(
                f"group_size must be a positive multiple of {_SMALLEST_GROUP}, got {group_size!r}"
            )
        self.group_size = group_size
        self.options = {"group_size": group_size}

    def unavailable_reason(self) -> str | None:
        return explain_missing_library("hqq", extra="hqq")

    def unsupported_reason(self, bits: int, out_features: int, in_features: int) -> str | None:
        reason = super().unsupported_reason(bits, out_features, in_features)
        if reason is not None:
            return reason
        group = self._choose_group_size(in_features)
        if group is None:
            return (
                f"hqq needs input features that are a multiple of {_SMALLEST_GROUP} for groups within rows, "
                f"got {in_features}: keep this linear at 16 bits or use the backend reference"
            )
        groups, multiple = out_features * in_features // group, _GROUPS_A_BYTE.get(bits, 1)
        if groups % multiple:
            return (
                f"hqq at {bits} bits packs {multiple} groups together, and a ({out_features}, {in_features}) weight "
                f"has {groups} groups of {group}: use another width or the backend reference"
            )
        return None

    def count_peak_bytes(
        self, levels: Sequence[int], out_features: int, in_features: int, dtype: torch.dtype, device: str
    ) -> int:
        size = out_features * in_features
        if device == "cpu":
            return int(max(_COPIES[bits] for bits in levels) * 4 * size)
        solving = (
            _SOLVING * min(_ROWS_AT_ONCE, out_features) * in_features + size
        )  # the codes of rows that are done
        return max(solving, *(int(_PACKING[bits] * size) for bits in levels))

    def encode(self, weight: Tensor, bits: int, hessian: Tensor | None) -> dict[str, Tensor]:
        from hqq.core import optimize
        from hqq.core.quantize import BaseQuantizeConfig, Quantizer

        group, _ = self._count_groups(*weight.shape)
        settings: dict[str, Any] = BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)[
            "weight_quant_params"
        ]
        parts = []
        # The library limits what it divides by: weights of no size at all would be rounded as with fewer bits.
        largest = float(weight.abs().max())
        power = 2.0 ** -math.floor(math.log2(largest)) if 0 < largest < _SMALL else 1.0
        for rows in weight.split(_ROWS_AT_ONCE):
            # The library solves in float16 on a GPU, by its own name for that dtype: other codes than on a CPU.
            with mock.patch.object(optimize, "float16", torch.float32):
                codes, meta = Quantizer.quantize(
                    rows.to(torch.float32) * power, device=str(weight.device), bitpack=False, **settings
                )
            parts.append(
                (codes.to(torch.uint8), meta["scale"] / power, meta["zero"])
            )  # the library has them as floats
        codes, scale, zero = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        codes, dtype = (
            Quantizer.pack[Quantizer.bit_to_packing[bits]](codes),
            _choose_group_dtype(weight.dtype),
        )
        return {"W_q": codes, "scale": scale.to(dtype), "zero": zero.to(dtype)}

    def list_tensor_specs(
        self, bits: int, out_features: int, in_features: int, dtype: torch.dtype = torch.bfloat16
    ) -> Expected:
        group, groups = self._count_groups(out_features, in_features)
        packed = ceil_div(groups, _GROUPS_A_WORD if bits == 3 else _GROUPS_A_BYTE.get(bits, 1))
        return {
            "W_q": ((packed, group), torch.int32 if bits == 3 else torch.uint8),
            "scale": ((groups, 1), _choose_group_dtype(dtype)),
            "zero": ((groups, 1), _choose_group_dtype(dtype)),
        }

    def make_module(self, tensors: dict[str, Tensor], bits: int, **form: Any) -> HQQLinear:
        group, _ = self._count_groups(form["out_features"], form["in_features"])
        return HQQLinear(tensors, bits=bits, group_size=group, **form)

    def _choose_group_size(self, in_features: int) -> int | None:
        """The most that a group can have: the library's are multiples of the smallest."""
        return find_group_size(in_features, self.group_size, _SMALLEST_GROUP)

    def _count_groups(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Weights that share a scale, and how many such groups there are."""
        group = self._choose_group_size(in_features) or self.group_size
        return group, out_features * ceil_div(in_features, group)


def _choose_group_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scale and zero stay in 16 bits also where the layer computes in float32: their bytes are part of the format."""
    return torch.bfloat16 if dtype == torch.float32 else dtype
