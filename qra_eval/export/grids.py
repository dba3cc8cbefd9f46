"""Integer grids: what a quantized layer stores as codes, and the best codes on a grid that another tool can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from qra_backends.base import largest_group
from qra_backends.integers import layouts
from qra_backends.integers.linear import IntegerLinear
from qra_backends.reference import bitpack
from qra_backends.reference.packed import GROUP_DTYPE
from torch import Tensor, nn

SHARES = (1.0, 0.93, 0.86, 0.79, 0.72, 0.65, 0.58, 0.5)
"""Parts of the full range to try. At 8 bits the full range is best."""
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Affine:
    """w[o, i] = scale[o, g] · codes[o, i] + offset[o, g], group g = i // group_size.

    Attributes:
        codes: uint8 (out, in).
        scale, offset: float32 (out, groups).
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor
    group_size: int


@dataclass(frozen=True)
class IntegerGrid:
    """w[o, i] = scale[o, g] · (codes[o, i] - zero[o, g]), with whole zero points from 0 to 2^bits - 1.

    Attributes:
        codes: uint8 (out, in).
        scale: float32 (out, groups), of values that the target's dtype holds exactly; may be negative.
        zero: uint8 (out, groups).
        same: whether this is the grid that the layer has already, not a new one.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    group_size: int
    same: bool

    def weight(self) -> Tensor:
        """The weight on the grid, float32 (out, in)."""
        steps = self.codes.float() - _spread(self.zero.float(), self.group_size)
        return steps * _spread(self.scale, self.group_size)


def affine_of(module: nn.Module) -> Affine | None:
    """Codes, scale and offset of a layer of the backends reference, gptq, compressed-tensors, hqq, bitsandbytes (int8)
    and gptqmodel.

    None if the levels are not evenly spaced (nf4, fp4), or the layer is of a backend that is not known here.
    """
    readers = {
        "PackedLinear": _packed, "HQQLinear": _hqq, "WeightOnlyLinear8bit": _bitsandbytes, "GPTQLinear": _gptq,
    }  # fmt: skip
    if isinstance(module, IntegerLinear):
        return Affine(module.codes(), module.scale(), -module.zeros() * module.scale(), module.group_size)
    # By name: an optional library that is not installed has made no layer, and need not be imported to say so.
    reader = readers.get(type(module).__name__)
    return None if reader is None else reader(module)


def integer_grid(
    weight: Tensor,
    bits: int,
    group_size: int,
    *,
    symmetric: bool,
    scale_dtype: torch.dtype,
    own: Affine | None = None,
) -> IntegerGrid:
    """The layer's own grid where the target can hold it exactly, else codes of small squared error on a new one.

    Args:
        weight: (out, in), what the layer multiplies by.
        group_size: divides in.
        symmetric: the zero point is 2^(bits - 1) everywhere. Scales may then be negative, which puts the one level
            more that a side has to where the weights reach further.
        scale_dtype: what scales are stored in.
        own: the grid that the layer has, where it is known.
    """
    kept = None if own is None else _keep(own, bits, group_size, symmetric, scale_dtype)
    if kept is not None:
        return kept
    fit = _symmetric if symmetric else _asymmetric
    parts = [fit(rows.unflatten(1, (-1, group_size)).float(), bits, scale_dtype) for rows in weight.split(ROWS_AT_ONCE)]
    codes, scale, zero = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return IntegerGrid(codes.flatten(1).to(torch.uint8), scale, zero.to(torch.uint8), bits, group_size, False)


def group_that_divides(in_features: int, largest: int) -> int:
    """The first of largest, largest/2, ... that divides `in_features`; a whole row where none of 16 or more does."""
    return largest_group(in_features, largest, 16) or in_features


def _keep(own: Affine, bits: int, group_size: int, symmetric: bool, dtype: torch.dtype) -> IntegerGrid | None:
    if own.group_size % group_size or int(own.codes.max()) >= 2**bits or not _exact(own.scale, dtype):
        return None
    safe = torch.where(own.scale == 0, 1.0, own.scale)
    zero = (-own.offset / safe).round()
    if symmetric:
        # Codes may be moved by a whole number, as long as they stay in range.
        shift = 2 ** (bits - 1) - zero
        moved = own.codes.float() + _spread(shift, own.group_size)
        if not torch.equal(-zero * own.scale, own.offset) or moved.min() < 0 or moved.max() >= 2**bits:
            return None
        codes, zero = moved.to(torch.uint8), torch.full_like(zero, 2 ** (bits - 1))
    else:
        if not torch.equal(-zero * own.scale, own.offset) or zero.min() < 0 or zero.max() >= 2**bits:
            return None
        codes = own.codes
    repeat = own.group_size // group_size
    return IntegerGrid(
        codes, own.scale.repeat_interleave(repeat, 1), zero.to(torch.uint8).repeat_interleave(repeat, 1),
        bits, group_size, True,
    )  # fmt: skip


def _symmetric(weight: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (out, groups, size), scale and zero (out, groups) of weight (out, groups, size)."""
    half = 2 ** (bits - 1)
    largest = weight.gather(-1, weight.abs().argmax(-1, keepdim=True))
    starts = [side * share * largest / reach for share in _shares(bits) for side, reach in ((-1, half), (1, half - 1))]
    zero = torch.full_like(largest, half)
    codes, scale, zero = _best(weight, [(scale, zero) for scale in starts], bits, dtype)
    return codes, scale.squeeze(-1), zero.squeeze(-1)


def _asymmetric(weight: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    top = 2**bits - 1
    low, high = weight.amin(-1, keepdim=True).clamp_max(0), weight.amax(-1, keepdim=True).clamp_min(0)
    starts = []
    for share in _shares(bits):
        scale = share * (high - low) / top
        zero = (-share * low / torch.where(scale == 0, 1.0, scale)).round().clamp_(1, top)
        starts.append((scale, zero))
    codes, scale, zero = _best(weight, starts, bits, dtype)
    return codes, scale.squeeze(-1), zero.squeeze(-1)


def _best(
    weight: Tensor, starts: list[tuple[Tensor, Tensor]], bits: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Of several scales and zeros the ones with the least squared error, each refitted once to its codes."""
    best_error = torch.full_like(starts[0][0], torch.inf)
    best_scale, best_zero = starts[0]
    for scale, zero in starts:
        for refit in (False, True):
            stored = scale.to(dtype).float()
            steps = _codes(weight, stored, zero, bits) - zero
            error = (steps * stored - weight).square_().sum(-1, keepdim=True)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale, best_zero = torch.where(better, stored, best_scale), torch.where(better, zero, best_zero)
            if not refit:
                power = steps.square().sum(-1, keepdim=True)
                fitted = (steps * weight).sum(-1, keepdim=True) / power.clamp_min(1e-20)
                scale = torch.where(power > 0, fitted, scale)
    return _codes(weight, best_scale, best_zero, bits), best_scale, best_zero


def _codes(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    return (weight / torch.where(scale == 0, 1.0, scale) + zero).round_().clamp_(0, 2**bits - 1)


def _shares(bits: int) -> tuple[float, ...]:
    return SHARES if bits <= 4 else SHARES[:2]


def _spread(values: Tensor, group_size: int) -> Tensor:
    return values.repeat_interleave(group_size, dim=1)


def _exact(values: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(values.to(dtype).float(), values)


# -- what each backend stores --------------------------------------------------------------------
def _packed(module: Any) -> Affine | None:
    if module.in_features % module.group_size and module.group_size < module.in_features:
        return None  # a shorter last group
    codes = bitpack.unpack(module.codes, module.bits, module.out_features * module.in_features)
    return Affine(
        codes.view(module.out_features, module.in_features),
        module.scale.view(GROUP_DTYPE).float(),
        module.offset.view(GROUP_DTYPE).float(),
        min(module.group_size, module.in_features),
    )


def _hqq(module: Any) -> Affine:
    from hqq.core.quantize import Quantizer

    meta = module.meta
    out_features, in_features = meta["shape"]
    size = meta["group_size"]
    codes = Quantizer.unpack[meta["packing"]](module.W_q.data)[: out_features * in_features // size]
    scale = meta["scale"].float().view(out_features, -1)
    return Affine(
        codes.to(torch.uint8).reshape(out_features, in_features),
        scale,
        -meta["zero"].float().view(out_features, -1) * scale,
        size,
    )


def gptq_parts(tensors: Mapping[str, Tensor], bits: int, shift: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 (out, in), scales and zero points float32 (out, groups) of GPTQ's four tensors.

    Args:
        shift: by how much the stored zero points are lower than the real ones.
    """
    shape = tensors["scales"].shape[1], len(tensors["g_idx"])
    codes = bitpack.unpack(layouts.gptq_stream(tensors), bits, shape[0] * shape[1]).view(shape)
    zeros = layouts.gptq_zeros(tensors, bits, shift=shift)
    return codes, tensors["scales"].float().t().contiguous(), zeros


def _gptq(module: Any) -> Affine | None:
    """Of a layer in GPTQ's second format; None if its groups are not runs of columns."""
    tensors = {name: getattr(module, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
    groups = len(tensors["scales"])
    size = len(tensors["g_idx"]) // groups
    if not torch.equal(tensors["g_idx"].cpu().long(), torch.arange(groups).repeat_interleave(size)):
        return None
    codes, scale, zeros = gptq_parts({name: tensor.cpu() for name, tensor in tensors.items()}, module.bits, 0)
    return Affine(codes, scale, -zeros * scale, size)


def _bitsandbytes(module: Any) -> Affine:
    codes = module.weight.data
    scale = (module.row_scale.float() / 127).unsqueeze(1)
    return Affine((codes.to(torch.int16) + 128).to(torch.uint8), scale, -128 * scale, codes.shape[1])
