"""Backend `torchao`: int8 weights as torchao's tensors, and its 4-bit normal floats; an optional extra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qra_backends.base import Backend, check_tensors, copy_bias, missing_library
from qra_backends.libraries import torchao_nf4
from qra_backends.libraries.torchao_nf4 import NF4Linear
from qra_backends.storage import StorageFormat

_GROUP_BYTES = 5  # a float32 scale and an int8 zero point, which is kept although it is zero


class TorchAOBackend(Backend):
    """8-bit integers with a scale for each row, or for each group of a row; 4-bit normal floats with scales in 8 bits.

    Other widths are refused: torchao 0.18 restricts the values of small integers but keeps one in each byte
    (`IntxUnpackedToInt8Tensor`). So are its packed 4-bit integers, whose products have no gradient to their input
    ("derivative for aten::_weight_int4pack_mm_for_cpu is not implemented"), and whose packing is that of one machine:
    no adapter could be tuned below such a layer, nor its file be read elsewhere.

    Args:
        group_size: weights of a row that share a scale at 8 bits; None for the whole row.
    """

    name: ClassVar[str] = "torchao"
    bits = (4, 8)

    def __init__(self, *, group_size: int | None = None):
        if group_size is not None and (not isinstance(group_size, int) or group_size < 1):
            raise ValueError(f"group_size must be a positive integer or None, got {group_size!r}")
        self.group_size = group_size
        self.options = {"group_size": group_size}

    def unavailable(self) -> str | None:
        reason = missing_library("torchao", extra="torchao")
        if reason is None:
            from torchao import quantization

            if not hasattr(quantization, "Int8Tensor"):
                reason = "this release of torchao has no Int8Tensor: pip install 'torchao>=0.18'"
            elif missing_library("torchao.quantization.quantize_.workflows.nf4.nf4_tensor"):
                reason = "this release of torchao keeps its NF4Tensor elsewhere: pip install 'torchao==0.18.*'"
        return reason

    def supports(self, bits: int, out_features: int, in_features: int) -> str | None:
        if bits in range(1, 8) and bits not in self.bits:
            return (
                f"torchao keeps {bits}-bit integers one in each byte, so {bits} bits would take 8: choose 4 (nf4) or 8 "
                "bits, or the backend reference or hqq"
            )
        reason = super().supports(bits, out_features, in_features)
        weights = out_features * in_features
        if bits == 4 and weights and torchao_nf4.scale_block(weights) is None:
            reason = (
                f"torchao's nf4 groups {torchao_nf4.BLOCK} weights, and at least {torchao_nf4.SMALLEST_SCALE_BLOCK} of "
                f"their scales: {out_features} x {in_features} does not divide so, use bitsandbytes-nf4"
            )
        if reason is None and bits == 8 and self.group_size is not None and in_features % self.group_size:
            reason = (
                f"torchao needs groups that divide the input features, got {in_features} and groups of "
                f"{self.group_size}: choose another group_size, or None for one scale a row"
            )
        return reason

    def storage(self, bits: int) -> StorageFormat:
        self.check_bits(bits)
        return _NF4Format() if bits == 4 else _Int8Format(self.group_size)

    @torch.no_grad()
    def quantize(self, linear: nn.Linear, bits: int, *, hessian: Tensor | None = None) -> nn.Linear:
        self.check(linear, bits)
        shape = {"out_features": linear.out_features, "in_features": linear.in_features}
        more: dict[str, Any] = {"bits": bits, **shape, "bias": linear.bias, "dtype": linear.weight.dtype}
        if bits == 4:
            return self.from_tensors(torchao_nf4.nf4_tensors(linear.weight), **more)
        from torchao.quantization import Int8Tensor, PerGroup, PerRow

        granularity = PerRow() if self.group_size is None else PerGroup(self.group_size)
        weight = Int8Tensor.from_hp(linear.weight.detach(), granularity)
        return self.from_tensors(_weight_tensors(weight), **more)

    def dequantize(self, module: nn.Module) -> Tensor:
        return module.dequantize() if isinstance(module, NF4Linear) else _int8_tensor(module).dequantize()

    def to_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        if isinstance(module, NF4Linear):
            floats = {"factors": module.factors.view(torch.float32), "mean": module.mean.view(torch.float32)}
            found = {"codes": module.codes, "scales": module.scales, **floats}
        else:
            found = _weight_tensors(_int8_tensor(module))
        return {name: tensor.clone() for name, tensor in found.items()}

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
        self.check_shape(bits, out_features, in_features)
        if bits == 4:
            weights = out_features * in_features
            scales = weights // torchao_nf4.BLOCK
            check_tensors(
                tensors,
                {
                    "codes": ((weights // 2,), torch.uint8),
                    "scales": ((scales,), torch.int8),
                    "factors": ((scales // (torchao_nf4.scale_block(weights) or 1),), torch.float32),
                    "mean": ((1,), torch.float32),
                },
                "torchao nf4",
            )
            return NF4Linear(
                **tensors,
                out_features=out_features,
                in_features=in_features,
                bias=copy_bias(bias, dtype, tensors["codes"].device),
                dtype=dtype,
            )
        from torchao.quantization import Int8Tensor

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


@dataclass(frozen=True)
class _NF4Format:
    bits: int = 4

    def bytes(self, out_features: int, in_features: int) -> int:
        return torchao_nf4.nf4_bytes(out_features, in_features)


def _weight_tensors(weight: Any) -> dict[str, Tensor]:
    return {"qdata": weight.qdata, "scale": weight.scale, "zero_point": weight.zero_point}


def _int8_tensor(module: nn.Module) -> Any:
    from torchao.quantization import Int8Tensor

    weight = getattr(module, "weight", None)
    if not isinstance(weight, Int8Tensor):
        raise ValueError(f"expected a torchao int8 layer made by this backend, got {type(module).__name__}")
    return weight
