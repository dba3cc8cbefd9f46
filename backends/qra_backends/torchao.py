"""Backend `torchao`: int8 weights as torchao's tensors; an optional extra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qra_backends.base import Backend, check_tensors, copy_bias, missing_library
from qra_backends.storage import StorageFormat

_GROUP_BYTES = 5  # a float32 scale and an int8 zero point, which is kept although it is zero


class TorchAOBackend(Backend):
    """8-bit integers with a scale for each row, or for each group of a row.

    Fewer bits are refused: torchao 0.18 restricts the values but keeps one in each byte (`IntxUnpackedToInt8Tensor`),
    and its packed 4-bit tensors need a GPU and a library of their own.

    Args:
        group_size: weights of a row that share a scale; None for the whole row.
    """

    name: ClassVar[str] = "torchao"
    bits = (8,)

    def __init__(self, *, group_size: int | None = None):
        if group_size is not None and (not isinstance(group_size, int) or group_size < 1):
            raise ValueError(f"group_size must be a positive integer or None, got {group_size!r}")
        self.group_size = group_size
        self.options = {"group_size": group_size}

    def unavailable(self) -> str | None:
        reason = missing_library("torchao")
        if reason is None:
            from torchao import quantization

            if not hasattr(quantization, "Int8Tensor"):
                reason = "this release of torchao has no Int8Tensor: pip install 'torchao>=0.18'"
        return reason

    def supports(self, bits: int, out_features: int, in_features: int) -> str | None:
        if bits in range(1, 8):
            return (
                f"torchao keeps {bits}-bit integers one in each byte, so {bits} bits would take 8: choose 8 bits, "
                "or the backend reference or hqq"
            )
        reason = super().supports(bits, out_features, in_features)
        if reason is None and self.group_size is not None and in_features % self.group_size:
            reason = (
                f"torchao needs groups that divide the input features, got {in_features} and groups of "
                f"{self.group_size}: choose another group_size, or None for one scale a row"
            )
        return reason

    def storage(self, bits: int) -> StorageFormat:
        self.check_bits(bits)
        return _Int8Format(self.group_size)

    @torch.no_grad()
    def quantize(self, linear: nn.Linear, bits: int, *, hessian: Tensor | None = None) -> nn.Linear:
        self.check(linear, bits)
        from torchao.quantization import Int8Tensor, PerGroup, PerRow

        granularity = PerRow() if self.group_size is None else PerGroup(self.group_size)
        weight = Int8Tensor.from_hp(linear.weight.detach(), granularity)
        return self.from_tensors(
            _weight_tensors(weight),
            bits=bits,
            out_features=linear.out_features,
            in_features=linear.in_features,
            bias=linear.bias,
            dtype=linear.weight.dtype,
        )

    def dequantize(self, module: nn.Module) -> Tensor:
        return _int8_tensor(module).dequantize()

    def to_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in _weight_tensors(_int8_tensor(module)).items()}

    def from_tensors(
        self,
        tensors: dict[str, Tensor],
        *,
        bits: int,
        out_features: int,
        in_features: int,
        bias: Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> nn.Linear:
        from torchao.quantization import Int8Tensor

        reason = self.supports(bits, out_features, in_features)
        if reason is not None:
            raise ValueError(reason)
        group = self.group_size or in_features
        groups = (out_features, in_features // group)
        expected = {
            "qdata": ((out_features, in_features), torch.int8),
            "scale": (groups, torch.float32),
            "zero_point": (groups, torch.int8),
        }
        check_tensors(tensors, expected, f"torchao int8, group size {group}")
        weight = Int8Tensor(tensors["qdata"], tensors["scale"], [1, group], dtype, zero_point=tensors["zero_point"])
        layer = nn.Linear(in_features, out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.register_parameter("bias", copy_bias(bias, dtype, tensors["qdata"].device))
        return layer


@dataclass(frozen=True)
class _Int8Format:
    group_size: int | None
    bits: int = 8

    def bytes(self, out_features: int, in_features: int) -> int:
        groups = out_features * (in_features // (self.group_size or in_features))
        return out_features * in_features + _GROUP_BYTES * groups


def _weight_tensors(weight: Any) -> dict[str, Tensor]:
    return {"qdata": weight.qdata, "scale": weight.scale, "zero_point": weight.zero_point}


def _int8_tensor(module: nn.Module) -> Any:
    from torchao.quantization import Int8Tensor

    weight = getattr(module, "weight", None)
    if not isinstance(weight, Int8Tensor):
        raise ValueError(f"expected a torchao int8 layer made by this backend, got {type(module).__name__}")
    return weight
