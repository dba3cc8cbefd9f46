"""Backend `compressed-tensors`: calibrated codes with whole zero points, in tensors that vLLM and transformers load."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qra_backends.calibration import check_damping
from qra_backends.integers.fit import as_16_bits, fit_groups
from qra_backends.integers.linear import SCALE_DTYPE, WORD, CompressedIntegers, lay_out, pack_words
from qra_backends.modules import Groups
from qra_backends.reference.gptq import ErrorFeedback, Fitted
from qra_backends.storage import largest_group
from qra_backends.tensors import Expected

GROUP_SIZES = (32, 64, 128)


class CompressedTensorsBackend(ErrorFeedback):
    """Codes by error feedback, like `reference-gptq`, with a 16-bit scale and a whole zero point a group.

    In compressed-tensors' `pack-quantized` form. Symmetric unless said otherwise: at 4 bits zero points buy no more
    than their bytes, and more kernels do without. 8 bits are symmetric always, as vLLM's kernels for GPUs take zero
    points at 4 bits only. Scales are numbers that float16 and bfloat16 both have: an engine reads the same ones
    whatever it computes in.

    Args:
        group_size: weights of a row that share scale and zero point; halved, down to 32, for a row it does not divide.
        symmetric: the zero point is 2^(bits - 1) everywhere.
        damping: as of `reference-gptq`.
    """

    name: ClassVar[str] = "compressed-tensors"
    bits = (4, 8)
    layer = CompressedIntegers
    largest = torch.finfo(torch.float16).max
    trained = ("weight_scale",)

    def __init__(self, *, group_size: int = 64, symmetric: bool = True, damping: float = 0.1):
        if group_size not in GROUP_SIZES:
            raise ValueError(f"group_size must be one of {', '.join(map(str, GROUP_SIZES))}, got {group_size!r}")
        self.group_size, self.symmetric = group_size, bool(symmetric)
        check_damping(damping)
        self.damping = damping
        self.options = {"group_size": group_size, "symmetric": self.symmetric, "damping": damping}

    def is_symmetric(self, bits: int) -> bool:
        """Whether a width has one zero point for all."""
        return self.symmetric or bits == 8

    def supports(self, bits: int, out_features: int, in_features: int) -> str | None:
        reason = super().supports(bits, out_features, in_features)
        if reason is None and (out_features % WORD or in_features % WORD):
            reason = (
                f"{self.name} packs words of {WORD} weights, got {out_features} x {in_features}: use "
                "reference-gptq, which takes any shape"
            )
        return reason

    def group_size_for(self, in_features: int) -> int:
        return largest_group(in_features, self.group_size, WORD) or WORD

    def fit(self, rows: Tensor, bits: int, importance: Tensor) -> Fitted:
        size = self.group_size_for(rows.shape[1])
        return fit_groups(rows, bits, size, importance, symmetric=self.is_symmetric(bits))

    def pack(self, bits: int, codes: Tensor, fitted: Fitted) -> dict[str, Tensor]:
        assert fitted.zero is not None
        return {"words": pack_words(codes, bits), "scale": fitted.scale, "zero": fitted.zero}

    def lay_out(self, bits: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return lay_out(tensors["words"], tensors["scale"], None if self.is_symmetric(bits) else tensors["zero"], bits)

    def expected(self, bits: int, out_features: int, in_features: int, dtype: torch.dtype = torch.bfloat16) -> Expected:
        groups = in_features // self.group_size_for(in_features)
        tensors = {
            "weight_packed": ((out_features, in_features * bits // WORD), torch.int32),
            "weight_scale": ((out_features, groups), SCALE_DTYPE),
            "weight_shape": ((2,), torch.int64),
        }
        if not self.is_symmetric(bits):
            tensors["weight_zero_point"] = ((out_features * bits // WORD, groups), torch.int32)
        return tensors

    def module(self, tensors: dict[str, Tensor], bits: int, **form: Any) -> CompressedIntegers:
        return CompressedIntegers(tensors, bits=bits, group_size=self.group_size_for(form["in_features"]), **form)

    def with_groups(self, module: nn.Module, groups: Groups) -> nn.Module:
        return super().with_groups(module, groups._replace(scale=as_16_bits(groups.scale).to(SCALE_DTYPE).contiguous()))
