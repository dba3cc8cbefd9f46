"""A linear layer on torchao's NF4 tensors; needs torchao only where it computes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from qra_backends.base import largest_group
from qra_backends.modules.linear import DequantizedLinear

BLOCK = 64  # weights that share a scale
LARGEST_SCALE_BLOCK, SMALLEST_SCALE_BLOCK = 256, 16  # scales that share a factor; torchao's own is 256
FACTOR_BYTES, MEAN_BYTES = 4, 4
_ZERO = 0x77  # two codes of the level 0
_FLOATS = torch.int32  # floats would be recast by module.to(dtype), and change


class NF4Linear(DequantizedLinear):
    """y = x Wᵀ + bias with the weight in 4-bit normal floats, and its scales in 8 bits (QLoRA, arXiv 2305.14314).

    Buffers: `codes` uint8 (out·in/2,); `scales` int8 (out·in/64,); `factors` (scale blocks,) and `mean` (1,), float32
    kept as int32.
    """

    codes: Tensor
    scales: Tensor
    factors: Tensor
    mean: Tensor

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        factors: Tensor,
        mean: Tensor,
        *,
        out_features: int,
        in_features: int,
        bias: nn.Parameter | None,
        dtype: torch.dtype,
    ):
        super().__init__(out_features, in_features, bias=bias, dtype=dtype)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("factors", factors.view(_FLOATS))
        self.register_buffer("mean", mean.view(_FLOATS))

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in), computed by torchao in float32 and rounded once to `dtype`."""
        from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import NF4Tensor, SubclassTensorArgs

        shape, device = (self.out_features, self.in_features), self.codes.device
        meta = SubclassTensorArgs(torch.Size(shape), (shape[1], 1), 0, torch.float32, device, False)
        factors = self.factors.view(torch.float32)
        weight = NF4Tensor(
            meta,
            BLOCK,
            self.scales.numel(),
            self.scales.numel() // factors.numel(),
            self.scales,
            factors,
            self.mean.view(torch.float32)[0],
            self.codes,
            nf4=_levels(str(device)),
        )
        return weight.get_original_weight().to(dtype or self.dtype)


def scale_block(weights: int) -> int | None:
    """Scales that share a factor, for so many weights; None where torchao's double quantization does not fit."""
    if weights % BLOCK:
        return None
    return largest_group(weights // BLOCK, LARGEST_SCALE_BLOCK, SMALLEST_SCALE_BLOCK)


def nf4_bytes(out_features: int, in_features: int) -> int:
    """Exact bytes of a weight: codes, scales, factors, mean."""
    weights = out_features * in_features
    scales = weights // BLOCK
    return weights // 2 + scales + FACTOR_BYTES * (scales // (scale_block(weights) or scales)) + MEAN_BYTES


def nf4_tensors(weight: Tensor) -> dict[str, Tensor]:
    """What torchao's NF4 makes of a weight (out, in), by the names of `NF4Linear`.

    Blocks of zeros get the code of zero, and scales that are all equal the scale 0: torchao divides by zero there.
    """
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import NF4Tensor

    size = scale_block(weight.numel())
    assert size is not None, "the caller checks the shape"
    weight = weight.detach().float().contiguous()
    made = NF4Tensor.from_tensor(weight, BLOCK, size)
    zero = (weight.view(-1, BLOCK) == 0).all(1)
    codes = torch.where(zero[:, None], _ZERO, made.quantized_data.view(-1, BLOCK // 2)).view(-1)
    equal = torch.isinf(made.quantization_factor)
    scales = torch.where(equal[:, None], 0, made.quantized_scalers.view(-1, size)).view(-1)
    return {
        "codes": codes.to(torch.uint8),
        "scales": scales.to(torch.int8),
        "factors": made.quantization_factor.clone(),  # a single one is a view of a whole row
        "mean": made.scaler_mean.view(1),
    }


@functools.cache
def _levels(device: str) -> Tensor:
    """torchao's sixteen levels, float32 (16,)."""
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import NF4Tensor

    return NF4Tensor.from_tensor(torch.linspace(-1, 1, BLOCK, device=device).view(1, BLOCK), BLOCK, 1).nf4
