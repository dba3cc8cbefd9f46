"""Backends `gptq` and `compressed-tensors`: calibrated codes with whole zero points, in an engine's own tensors."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from qra_backends.base import Expected, largest_group
from qra_backends.integers import layouts
from qra_backends.integers.fit import as_16_bits, fit_groups
from qra_backends.integers.linear import CompressedIntegers, GPTQIntegers, IntegerLinear
from qra_backends.modules import Groups
from qra_backends.reference.gptq import ErrorFeedback, Fitted
from qra_backends.storage import ceil_div

GROUP_SIZES = (32, 64, 128)
LARGEST = torch.finfo(torch.float16).max


class IntegerBackend(ErrorFeedback):
    """Codes by error feedback, like `reference-gptq`, with a 16-bit scale and a whole zero point a group.

    Scales are numbers that float16 and bfloat16 both have: an engine reads the same ones whatever it computes in.

    Args:
        group_size: weights of a row that share scale and zero point; halved, down to 32, for a row it does not divide.
        symmetric: the zero point is 2^(bits - 1) everywhere, which some kernels need.
        damping: as of `reference-gptq`.
    """

    layer: type[IntegerLinear]

    def __init__(self, *, group_size: int, symmetric: bool, damping: float):
        if group_size not in GROUP_SIZES:
            raise ValueError(f"group_size must be one of {', '.join(map(str, GROUP_SIZES))}, got {group_size!r}")
        self.group_size, self.symmetric = group_size, bool(symmetric)
        self.calibrate_with(damping)
        self.options = {"group_size": group_size, "symmetric": self.symmetric, "damping": damping}

    def is_symmetric(self, bits: int) -> bool:
        """Whether a width has one zero point for all."""
        return self.symmetric

    def supports(self, bits: int, out_features: int, in_features: int) -> str | None:
        reason = super().supports(bits, out_features, in_features)
        if reason is None and (out_features % layouts.WORD or in_features % layouts.WORD):
            reason = (
                f"{self.name} packs words of {layouts.WORD} weights, got {out_features} x {in_features}: use "
                "reference-gptq, which takes any shape"
            )
        return reason

    def size_of(self, in_features: int) -> int:
        return largest_group(in_features, self.group_size, layouts.WORD) or layouts.WORD

    def fit(self, rows: Tensor, bits: int, importance: Tensor) -> Fitted:
        size = self.size_of(rows.shape[1])
        return fit_groups(rows, bits, size, importance, symmetric=self.is_symmetric(bits))

    def packed(self, bits: int, codes: Tensor, fitted: Fitted) -> dict[str, Tensor]:
        assert fitted.zero is not None
        return {"words": layouts.words_of(codes, bits), "scale": fitted.scale, "zero": fitted.zero}

    def check(self, linear: nn.Module, bits: int) -> None:
        super().check(linear, bits)
        largest = linear.get_parameter("weight").abs().max().item()
        if largest > LARGEST:
            raise ValueError(f"the weight's largest value {largest:g} is above {LARGEST:g}, the most a scale can hold")

    def to_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.own(module).tensors().items()}

    def module(
        self,
        tensors: dict[str, Tensor],
        bits: int,
        shape: tuple[int, int],
        bias: nn.Parameter | None,
        dtype: torch.dtype,
    ) -> IntegerLinear:
        size, (out_features, in_features) = self.size_of(shape[1]), shape
        return self.layer(
            tensors,
            bits=bits,
            group_size=size,
            out_features=out_features,
            in_features=in_features,
            bias=bias,
            dtype=dtype,
        )

    def trainable(self, module: nn.Module) -> Groups:
        own = self.own(module)
        # bfloat16 has every number of `as_16_bits`, so rounding to it is rounding to what is stored.
        return Groups(own.scale().to(torch.bfloat16), None, own.group_size)

    def trainable_numbers(self, bits: int, out_features: int, in_features: int) -> int:
        self.check_bits(bits)
        return out_features * ceil_div(in_features, self.size_of(in_features))

    def retrained(self, module: nn.Module, groups: Groups) -> IntegerLinear:
        return self.own(module).scaled(as_16_bits(groups.scale))


class GPTQBackend(IntegerBackend):
    """In GPTQ's second format, which GPTQModel, and transformers with it, load."""

    name: ClassVar[str] = "gptq"
    bits = (2, 3, 4, 8)
    layer = GPTQIntegers

    def __init__(self, *, group_size: int = 64, symmetric: bool = False, damping: float = 0.1):
        super().__init__(group_size=group_size, symmetric=symmetric, damping=damping)

    def expected(self, bits: int, out_features: int, in_features: int, dtype: torch.dtype = torch.bfloat16) -> Expected:
        groups = in_features // self.size_of(in_features)
        return {
            "qweight": ((in_features * bits // layouts.WORD, out_features), torch.int32),
            "qzeros": ((groups, out_features * bits // layouts.WORD), torch.int32),
            "scales": ((groups, out_features), torch.float16),
            "g_idx": ((in_features,), torch.int32),
        }

    def laid_out(self, bits: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return layouts.gptq_tensors(tensors["words"], tensors["scale"], tensors["zero"], bits)


class CompressedTensorsBackend(IntegerBackend):
    """In compressed-tensors' `pack-quantized` form, which vLLM and transformers load.

    Symmetric unless said otherwise: at 4 bits zero points buy no more than their bytes, and more kernels do without. 8
    bits are symmetric always, as vLLM's kernels for GPUs take zero points at 4 bits only.
    """

    name: ClassVar[str] = "compressed-tensors"
    bits = (4, 8)
    layer = CompressedIntegers

    def __init__(self, *, group_size: int = 64, symmetric: bool = True, damping: float = 0.1):
        super().__init__(group_size=group_size, symmetric=symmetric, damping=damping)

    def is_symmetric(self, bits: int) -> bool:
        return self.symmetric or bits == 8

    def expected(self, bits: int, out_features: int, in_features: int, dtype: torch.dtype = torch.bfloat16) -> Expected:
        groups = in_features // self.size_of(in_features)
        tensors = {
            "weight_packed": ((out_features, in_features * bits // layouts.WORD), torch.int32),
            "weight_scale": ((out_features, groups), torch.bfloat16),
            "weight_shape": ((2,), torch.int64),
        }
        if not self.is_symmetric(bits):
            tensors["weight_zero_point"] = ((out_features * bits // layouts.WORD, groups), torch.int32)
        return tensors

    def laid_out(self, bits: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        words, zero = tensors["words"], None if self.is_symmetric(bits) else tensors["zero"]
        scale = tensors["scale"].to(torch.bfloat16)
        return layouts.compressed_tensors(words, scale, zero, bits, words.shape[1] * layouts.WORD // bits)
