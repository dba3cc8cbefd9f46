"""Backend `gguf`: weights in llama.cpp's block types, so that an export copies bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qra_backends.base import Backend, Level
from qra_backends.calibration import check_damping, check_hessian
from qra_backends.ggml import library
from qra_backends.ggml.decode import decode, read_scales, replace_block_scales, replace_codes
from qra_backends.ggml.types import TYPES, GGMLType, load_iq4_values, read_float16
from qra_backends.modules import DequantizedLinear, Scales
from qra_backends.reference.gptq import Factor, factorize, round_columns
from qra_backends.storage import Expected, ceil_div

ADDED_TYPES = ("IQ2_S", "IQ3_S", "Q4_0", "Q5_1")
DEFAULT_TYPES = tuple(name for name in TYPES if name not in ADDED_TYPES)
"""Of types of the same size, the one of least error with error feedback."""
_PART = 32  # columns whose feedback is applied one by one before the rest of the block is updated at once


class GGMLLinear(DequantizedLinear):
    """y = x Wᵀ + bias, with W decoded anew from `blocks`, uint8 (out, bytes of a row), as a GGUF file holds them."""

    blocks: Tensor
    kind: GGMLType

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in), decoded in float32 and rounded once to `dtype`."""
        return decode(self.blocks, self.kind, dtype or self.dtype)

    def dequantize_rows(self, at: Tensor) -> Tensor:
        return decode(self.blocks[at], self.kind, self.dtype)


class GGUFBackend(Backend):
    """Levels are GGML types, stored as a GGUF file holds them and decoded to llama.cpp's numbers, bit for bit.

    Scales are llama.cpp's, fitted with the Hessian's diagonal as importance matrix; codes are chosen by error feedback,
    which leaves a half to a quarter of the output error of llama.cpp's own. K-quants (`Q2_K` ...) and `IQ` types but
    IQ4_NL need rows that are multiples of 256, the others of 32.
    Without calibration data, say so with `hessian=torch.eye(in_features)`.

    Args:
        types: names of the types to choose from; None: `DEFAULT_TYPES`.
        damping: share of the Hessian's mean diagonal that is added to its diagonal; more trusts the data less.
    """

    name: ClassVar[str] = "gguf"
    library: ClassVar[str | None] = library.PACKAGE
    calibrated = True
    side_by_side = True
    layer = GGMLLinear

    def __init__(self, *, types: Sequence[str] | str | None = None, damping: float = 0.1):
        chosen = DEFAULT_TYPES if types is None else types
        names = tuple(chosen) if isinstance(chosen, list | tuple) else (chosen,)
        unknown = [name for name in names if name not in list(TYPES)]
        if unknown or not names or len(set(names)) != len(names):
            raise ValueError(
                f"option 'types' of backend 'ggml' must be distinct names from {', '.join(TYPES)}, got "
                f"{', '.join(map(str, names))}"
            )
        check_damping(damping)
        self.bits = tuple(name for name in TYPES if name in names)
        self.damping = damping
        self.options = {"types": list(self.bits), "damping": damping}

    def unavailable_reason(self, levels: Sequence[Level] | None = None) -> str | None:
        return library.get_missing_reason()

    def unsupported_reason(self, bits: str, out_features: int, in_features: int) -> str | None:
        reason = super().unsupported_reason(bits, out_features, in_features)
        if reason is not None:
            return reason
        block = TYPES[bits].block
        if in_features % block:
            fits = [name for name in self.bits if in_features % TYPES[name].block == 0]
            return (
                f"{bits} needs rows that are multiples of {block}, got {in_features}, "
                f"which can be {', '.join(fits) or 'none of the types chosen'}"
            )
        return None

    def width(self, bits: str) -> float:
        self.check_bits(bits)
        return TYPES[bits].width

    def identity(self, bits: str) -> dict[str, Any]:
        """The identity without the other types, which do not affect a level's tensors."""
        found = super().identity(bits)
        return {**found, "spec": {**found["spec"], "types": [bits]}}

    def count_work_bytes(
        self, levels: Sequence[str], out_features: int, in_features: int, dtype: torch.dtype, device: str
    ) -> int:
        largest = max(TYPES[bits].block for bits in levels)
        # Matrices of the factor; the weight in floats and in order; a block's columns, codes, errors and blocks.
        return 4 * (3 * in_features**2 + 2 * out_features * in_features + 8 * out_features * largest)

    def encode_levels(
        self, weight: Tensor, levels: Sequence[str], hessian: Tensor | None, output_weights: Tensor | None
    ) -> dict[str, dict[str, Tensor]]:
        hessian = check_hessian(self.name, hessian, weight)
        importance, rows = hessian.diagonal().to(torch.float32), weight.to(torch.float32)
        factors = {
            block: factorize(hessian, self.damping, order=order_columns(importance, block))
            for block in {TYPES[bits].block for bits in levels}
        }
        return {
            bits: {"blocks": encode_blocks(rows, TYPES[bits], importance, factors[TYPES[bits].block])}
            for bits in levels
        }

    def get_scales(self, module: nn.Module) -> Scales:
        own = self.check_layer(module)
        scale = read_float16(own.blocks.view(-1, own.kind.block_bytes), own.kind.scale_at)
        return Scales(scale.view(own.out_features, -1).to(torch.float16), None, own.kind.block)

    def count_trainable(self, bits: str, out_features: int, in_features: int) -> int:
        self.check_bits(bits)
        return out_features * ceil_div(in_features, TYPES[bits].block)

    def replace_scales(self, module: nn.Module, scales: Scales) -> GGMLLinear:
        own: GGMLLinear = self.check_layer(module)
        blocks = own.blocks.view(-1, own.kind.block_bytes)
        changed = replace_block_scales(blocks, own.kind, scales.scale.to(torch.float32).view(-1, 1))
        return own.replace_tensors(blocks=changed.view_as(own.blocks))

    def describe_tensors(self, bits: str, out_features: int, in_features: int) -> Expected:
        return {"blocks": ((out_features, TYPES[bits].bytes(1, in_features)), torch.uint8)}

    def make_module(self, tensors: dict[str, Tensor], bits: str, **form: Any) -> GGMLLinear:
        return GGMLLinear(tensors, kind=TYPES[bits], **form)


def order_columns(importance: Tensor, block: int) -> Tensor:
    """Columns (in,) block after block, each by falling importance (in,)."""
    parts = importance.view(-1, block)
    first = parts.sum(1).argsort(descending=True)
    within = parts[first].argsort(dim=1, descending=True)
    return (first[:, None] * block + within).view(-1)


def encode_blocks(weight: Tensor, kind: GGMLType, importance: Tensor, factor: Factor) -> Tensor:
    """Blocks uint8 (out, bytes of a row) of a float32 weight (out, in).

    GPTQ (arXiv 2210.17323) in the order of blocks: llama.cpp fits a block's scales to the weights as the blocks before
    have left them, with the importance matrix; its codes are then chosen column by column, each making up for the
    errors before it, and what is left is passed to the blocks to come. The vectors of a codebook stay as llama.cpp
    chose them; only what the whole block lost is passed on. Blocks, and columns within a block, go from the largest
    mean squared input to the smallest.

    `importance` (in,) is the Hessian's diagonal, and `factor` the Hessian's, its columns in `order_columns`.
    """
    order, upper = factor
    out_features, in_features = weight.shape
    columns = weight.T[order].contiguous()
    blocks = torch.empty(
        out_features, in_features // kind.block, kind.block_bytes, dtype=torch.uint8, device=weight.device
    )
    for start in range(0, in_features, kind.block):
        stop = start + kind.block
        number = int(order[start]) // kind.block
        within = order[start:stop] - number * kind.block
        current, inverse = columns[start:stop], upper[start:stop, start:stop]
        natural = torch.empty_like(current)
        natural[within] = current
        own = importance[number * kind.block : (number + 1) * kind.block]
        made = library.quantize(natural.T, kind, own)
        if kind.planes:
            made, errors = _round_columns(current, made, kind, within, inverse)
        else:
            lost = current - decode(made, kind, torch.float32)[:, within].T
            errors = torch.linalg.solve_triangular(inverse.T, lost, upper=False)
        blocks[:, number] = made
        columns[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return blocks.view(out_features, -1)


def _round_columns(
    columns: Tensor, blocks: Tensor, kind: GGMLType, within: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """The blocks (out, bytes) with codes by feedback, and the errors (block, out) to pass on.

    Args:
        columns: (block, out), in the order of rounding; used up.
        within: place of each in the block.
        inverse: (block, block) of the factor.
    """
    scale, offset = read_scales(blocks, kind)
    if offset is None:
        offset = -kind.zero * scale
    scale, offset = scale.T.contiguous(), offset.T.contiguous()
    values = None if kind.even else load_iq4_values(columns.device)
    groups, highest = within // kind.group, 2**kind.code_bits - 1
    codes, errors = torch.empty_like(columns, dtype=torch.uint8), torch.empty_like(columns)
    for start in range(0, kind.block, _PART):
        own = slice(start, start + _PART)
        part = columns[own], inverse[own, own], groups[own]
        codes[within[own]], errors[own] = round_columns(*part, scale, offset, highest, values)
        columns[own.stop :].addmm_(inverse[own, own.stop :].T, errors[own], alpha=-1)
    return replace_codes(blocks, kind, codes.T.contiguous()), errors
