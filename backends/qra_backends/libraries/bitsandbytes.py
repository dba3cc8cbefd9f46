"""Backend `bitsandbytes`: nf4 at 4 bits and row-wise int8 at 8 bits, quantized and dequantized by bitsandbytes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from qra_backends.base import Backend, Level, explain_missing_library
from qra_backends.modules import DequantizedLinear
from qra_backends.storage import Expected, ceil_div, find_group_size

# At import it warns that an optional CPU kernel is missing, which serves the repacking alone that is off here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

FOUR_BIT_TYPE = "nf4"
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_LEVELS = 16  # entries of the table of 4-bit levels, float32
_NESTED_BLOCK = 256  # block scales that share a scale under double quantization
_NESTED_LEVELS = 256  # entries of the table of 8-bit levels, float32
NUMBERS_AT_ONCE = 1 << 20
"""Numbers of an int8 weight that a CPU dequantizes at once: it copies them twice in float32, a GPU does not."""
_FOUR_BIT_COPIES, _INT8_COPIES = 2.42, 2.25
"""Float32 copies of the weight at the peak of quantizing it, beside the result; measured with 2048 x 8192 on a CPU."""


class NF4Linear(DequantizedLinear):
    """A layer of 4-bit codes of a table of levels, with a scale for each block of a row.

    The library's own layer repacks itself in eval mode on CPUs with AVX512-BF16, and gradients are lost from then on.
    """

    blocksize: int

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in) as the library computes it in the layer's own dtype, cast to `dtype`."""
        weight = self._dequantize_codes(self.tensors()["codes"], self._dequantize_scales())
        return weight.to(dtype or self.dtype)

    def dequantize_rows(self, at: Tensor) -> Tensor:
        codes = self.tensors()["codes"].view(self.out_features, -1)[at]
        scales = self._dequantize_scales().view(self.out_features, -1)[at]
        return self._dequantize_codes(codes.view(-1, 1), scales.flatten())

    def _dequantize_codes(self, codes: Tensor, scales: Tensor) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState(
            scales,
            shape=torch.Size((2 * codes.numel() // self.in_features, self.in_features)),
            code=self.tensors()["quant_map"],
            blocksize=self.blocksize,
            quant_type=FOUR_BIT_TYPE,
            dtype=self.dtype,
        )
        return dequantize_4bit(codes, state)

    def _dequantize_scales(self) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_blockwise

        stored = self.tensors()
        if "nested_absmax" not in stored:
            return stored["absmax"]
        state = QuantState(
            stored["nested_absmax"],
            code=stored["nested_quant_map"],
            blocksize=_NESTED_BLOCK,
            dtype=torch.float32,
        )
        return dequantize_blockwise(stored["absmax"], state) + stored["nested_offset"]


class Int8Linear(DequantizedLinear):
    """y = x Wᵀ + bias with W[o, i] = code[o, i] · scale[o] / 127, in train and in eval mode.

    The library's own layer also rounds the activations to int8 in eval mode and on a GPU (LLM.int8), so that the loss
    of the same weights depends on the mode.
    """

    codes: Tensor

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Products are rounded once, from float32."""
        codes, scale = self.codes, self.tensors()["scale"][:, None] / 127
        weight = torch.empty(codes.shape, dtype=dtype or self.dtype, device=codes.device)
        at_once = max(1, NUMBERS_AT_ONCE // codes.shape[1]) if codes.device.type == "cpu" else len(codes)
        for start in range(0, len(codes), at_once):
            own = slice(start, start + at_once)
            torch.mul(codes[own], scale[own], out=weight[own])
        return weight

    def dequantize_rows(self, at: Tensor) -> Tensor:
        return self.codes[at].to(self.dtype).mul_(self.tensors()["scale"][at, None] / 127)


class BitsAndBytesBackend(Backend):
    """4 bits by blocks of a row with a float32 scale each (or doubly quantized scales); 8 bits with one a row.

    Args:
        quant_type: `nf4` for 4 bits only, `int8` for 8 bits only, None for both.
        blocksize: most weights of a row that share a scale at 4 bits. Where it does not divide the row, the largest
            of its halves that does is used; bitsandbytes dequantizes other sizes wrongly on a CPU.
        double_quant: quantize the block scales to 8 bits (smaller by 32 - 8 - 1/8 bits a block, 1 KiB a layer more).
    """

    name: ClassVar[str] = "bitsandbytes"
    side_by_side = True
    revision: ClassVar[int] = 2
    library: ClassVar[str | None] = "bitsandbytes"
    layer: ClassVar[Any] = NF4Linear | Int8Linear
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        kind: {"quant_type": kind} for kind in (FOUR_BIT_TYPE, "int8")
    }

    def __init__(self, *, quant_type: str | None = None, blocksize: int = 64, double_quant: bool = False):
        if quant_type not in (None, FOUR_BIT_TYPE, "int8"):
            raise ValueError(
                f"option 'quant_type' of backend 'bitsandbytes' must be nf4, int8 or None, got {quant_type!r}"
            )
        if blocksize not in BLOCK_SIZES:
            raise ValueError(
                f"option 'blocksize' of backend 'bitsandbytes' must be one of {', '.join(map(str, BLOCK_SIZES))}, got "
                f"{blocksize!r}"
            )
        if not isinstance(double_quant, bool):
            raise ValueError(
                f"option 'double_quant' of backend 'bitsandbytes' must be true or false, got {double_quant!r}"
            )
        self.bits = {None: (4, 8), "int8": (8,)}.get(quant_type, (4,))
        self.blocksize, self.double_quant = blocksize, double_quant
        self.options = {"quant_type": quant_type, "blocksize": blocksize, "double_quant": self.double_quant}

    def unavailable_reason(self, levels: Sequence[Level] | None = None) -> str | None:
        return explain_missing_library("bitsandbytes")

    def unsupported_reason(self, bits: int, out_features: int, in_features: int) -> str | None:
        reason = super().unsupported_reason(bits, out_features, in_features)
        if reason is None and bits == 4 and in_features % BLOCK_SIZES[0]:
            reason = (
                f"bitsandbytes at 4 bits needs input features that are a multiple of {BLOCK_SIZES[0]}, got "
                f"{in_features}: use 8 bits, keep this linear at 16 bits or use the backend reference"
            )
        return reason

    def count_work_bytes(
        self, levels: Sequence[int], out_features: int, in_features: int, dtype: torch.dtype, device: str
    ) -> int:
        if device != "cpu":
            # The library's kernels take nothing: 4 bits are cloned, and 8 are made of float16.
            half = 2 * out_features * in_features * (dtype != torch.float16)
            four = self.storage(4).bytes(out_features, in_features) if 4 in levels else 0
            return max(half if 8 in levels else 0, four)
        # At 4 bits the library makes a copy in float32, at 8 this backend makes one in float16.
        copies = {
            4: _FOUR_BIT_COPIES + (dtype != torch.float32),
            8: _INT8_COPIES - 0.5 * (dtype == torch.float16),
        }
        return int(max(copies[bits] for bits in levels) * 4 * out_features * in_features)

    def encode(self, weight: Tensor, bits: int, hessian: Tensor | None) -> dict[str, Tensor]:
        from bitsandbytes.functional import int8_vectorwise_quant, quantize_4bit

        if bits == 8:
            half = weight.to(torch.float16)
            if not half.isfinite().all():
                raise ValueError(
                    "a weight is above 65504, the largest value of this 8-bit format: use 4 bits, or another backend"
                )
            codes, row_scale, _ = int8_vectorwise_quant(half)
            return {"codes": codes, "scale": row_scale}
        packed, state = quantize_4bit(
            weight.contiguous(),
            blocksize=self._choose_block_size(weight.shape[1]),
            compress_statistics=self.double_quant,
            quant_type=FOUR_BIT_TYPE,
        )
        tensors = {"codes": packed, "absmax": state.absmax, "quant_map": state.code}
        if state.nested:
            tensors |= {"nested_absmax": state.state2.absmax, "nested_quant_map": state.state2.code}
            tensors["nested_offset"] = state.offset
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def describe_tensors(self, bits: int, out_features: int, in_features: int) -> Expected:
        if bits == 8:
            codes = ((out_features, in_features), torch.int8)
            return {"codes": codes, "scale": ((out_features,), torch.float32)}
        count = out_features * in_features
        blocks = ceil_div(count, self._choose_block_size(in_features))
        expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "codes": ((ceil_div(count, 2), 1), torch.uint8),
            "absmax": ((blocks,), torch.uint8 if self.double_quant else torch.float32),
            "quant_map": ((_LEVELS,), torch.float32),
        }
        if self.double_quant:
            expected["nested_absmax"] = ((ceil_div(blocks, _NESTED_BLOCK),), torch.float32)
            expected["nested_quant_map"] = ((_NESTED_LEVELS,), torch.float32)
            expected["nested_offset"] = ((), torch.float32)
        return expected

    def make_module(self, tensors: dict[str, Tensor], bits: int, **form: Any) -> DequantizedLinear:
        if bits == 8:
            return Int8Linear(tensors, **form)
        return NF4Linear(tensors, blocksize=self._choose_block_size(form["in_features"]), **form)

    def _choose_block_size(self, in_features: int) -> int:
        return find_group_size(in_features, self.blocksize, BLOCK_SIZES[0]) or self.blocksize
