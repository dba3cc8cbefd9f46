"""Backend `compressed-tensors`: calibrated codes on a symmetric grid, in tensors that vLLM and transformers load."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qra_backends.calibration import check_damping
from qra_backends.integers.fit import fit_groups, round_to_16_bits
from qra_backends.kernels.choice import find_decoder
from qra_backends.modules import DequantizedLinear, Scales
from qra_backends.reference import bitpack
from qra_backends.reference.gptq import ErrorFeedback, Fitted
from qra_backends.reference.packed import decode_packed
from qra_backends.storage import Expected, find_group_size

GROUP_SIZES = (32, 64, 128)
WORD = 32
SCALE_DTYPE = torch.bfloat16


class CompressedIntegers(DequantizedLinear):
    """y = x Wᵀ + bias with W[o, i] = scale[o, g] · (code[o, i] - 2^(bits - 1)), g = i // group_size.

    Buffers: the tensors of the `pack-quantized` form by their names, the scales as integers of their size.
    """

    bits: int
    group_size: int

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in): a scale has 8 bits and a step 9, so the product is exact in float32; rounded once."""
        form = (self.bits, self.group_size, (self.out_features, self.in_features), dtype or self.dtype)
        tensors = self.tensors()
        packed, scale = tensors["weight_packed"], tensors["weight_scale"]
        kernel = find_decoder(packed.device)
        if kernel is not None:
            return kernel(packed, scale, None, *form)
        scale = scale.to(torch.float32)
        return decode_packed(
            packed.view(torch.uint8).flatten(), scale, -(2.0 ** (self.bits - 1)) * scale, *form
        )


class CompressedTensorsBackend(ErrorFeedback):
    """Codes by error feedback, like `reference-gptq`, with a 16-bit scale a group, in the `pack-quantized` form.

    Without zero points, which at 4 bits buy no more than their bytes. Scales are numbers that float16 and bfloat16 both
    have: an engine reads the same ones whatever it computes in.

    Args:
        group_size: weights of a row that share a scale; halved, down to 32, for a row it does not divide.
        damping: as of `reference-gptq`.
    """

    name: ClassVar[str] = "compressed-tensors"
    bits = (4, 8)
    layer = CompressedIntegers
    largest = torch.finfo(torch.float16).max
    trained = ("weight_scale",)

    def __init__(self, *, group_size: int = 64, damping: float = 0.1):
        if group_size not in GROUP_SIZES:
            raise ValueError(
                f"group_size must be one of {', '.join(map(str, GROUP_SIZES))}, got {group_size!r}"
            )
        check_damping(damping)
        self.group_size, self.damping = group_size, damping
        self.options = {"group_size": group_size, "damping": damping}

    def unsupported_reason(self, bits: int, out_features: int, in_features: int) -> str | None:
        reason = super().unsupported_reason(bits, out_features, in_features)
        if reason is None and (out_features % WORD or in_features % WORD):
            reason = (
                f"{self.name} packs words of {WORD} weights, got {out_features} x {in_features}: use "
                "reference-gptq, which takes any shape"
            )
        return reason

    def choose_group_size(self, in_features: int) -> int:
        return find_group_size(in_features, self.group_size, WORD) or WORD

    def fit(self, rows: Tensor, bits: int, importance: Tensor) -> Fitted:
        return fit_groups(rows, bits, self.choose_group_size(rows.shape[1]), importance)

    def pack(self, bits: int, codes: Tensor, fitted: Fitted) -> dict[str, Tensor]:
        words = bitpack.pack(codes, bits).view(torch.int32).view(len(codes), -1)  # a row fills whole words
        return {"weight_packed": words, "weight_scale": fitted.scale.to(SCALE_DTYPE).contiguous()}

    def finish_tensors(self, bits: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        words = tensors["weight_packed"]
        shape = torch.tensor([len(words), words.shape[1] * WORD // bits], device=words.device)
        return {**tensors, "weight_shape": shape}

    def list_tensor_specs(
        self, bits: int, out_features: int, in_features: int, dtype: torch.dtype = torch.bfloat16
    ) -> Expected:
        groups = in_features // self.choose_group_size(in_features)
        return {
            "weight_packed": ((out_features, in_features * bits // WORD), torch.int32),
            "weight_scale": ((out_features, groups), SCALE_DTYPE),
            "weight_shape": ((2,), torch.int64),
        }

    def make_module(self, tensors: dict[str, Tensor], bits: int, **form: Any) -> CompressedIntegers:
        return CompressedIntegers(
            tensors, bits=bits, group_size=self.choose_group_size(form["in_features"]), **form
        )

    def replace_scales(self, module: nn.Module, scales: Scales) -> nn.Module:
        scale = round_to_16_bits(scales.scale).to(SCALE_DTYPE).contiguous()
        return super().replace_scales(module, scales._replace(scale=scale))
