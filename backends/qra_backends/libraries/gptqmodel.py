"""Backend `gptqmodel`: GPTQ by the library GPTQModel, stored as its layers store it; an optional extra."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qra_backends.base import Backend, check_tensors, copy_bias
from qra_backends.calibration import check_hessian
from qra_backends.storage import StorageFormat

MULTIPLE = 32  # codes are packed in words of 32 bits, along rows and (zero points) along columns
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""Those that GPTQModel's layers take."""


class GPTQModelBackend(Backend):
    """Codes of 2, 3, 4 or 8 bits with a float16 scale and a whole zero point for every group of a row.

    GPTQModel quantizes layer by layer on the Hessian that it is given; PEFT puts its GPTQ layer on top. The weight is
    dequantized in float16, as the library does, and multiplied in the model's dtype.

    Args:
        group_size: weights of a row that share scale and zero point.
        damping: share of the Hessian's mean diagonal that is added to its diagonal; GPTQModel raises it where that is
            not enough.
    """

    name: ClassVar[str] = "gptqmodel"
    library: ClassVar[str | None] = "gptqmodel"
    bits = (2, 3, 4, 8)
    calibrated = True

    def __init__(self, *, group_size: int = 64, damping: float = 0.05):
        if group_size not in GROUP_SIZES:
            raise ValueError(f"group_size must be one of {', '.join(map(str, GROUP_SIZES))}, got {group_size!r}")
        if not 0 < damping < 1:
            raise ValueError(f"damping must be above 0 and below 1, got {damping!r}")
        self.group_size, self.damping = group_size, damping
        self.options = {"group_size": group_size, "damping": damping}

    def unavailable(self) -> str | None:
        # Looked for, not imported: that takes seconds, prints a banner, and is wanted only when something is quantized.
        if importlib.util.find_spec("gptqmodel") is None:
            return "the package gptqmodel is not installed: pip install gptqmodel optimum"
        return None

    def supports(self, bits: int, out_features: int, in_features: int) -> str | None:
        reason = super().supports(bits, out_features, in_features)
        if reason is not None:
            return reason
        if out_features % MULTIPLE or in_features % MULTIPLE:
            return (
                f"GPTQModel packs words of {MULTIPLE} weights, got {out_features} x {in_features}: use reference-gptq, "
                "which takes any shape"
            )
        if in_features % self.group_size:
            return (
                f"GPTQModel needs groups that divide the input features, got {in_features} and groups of "
                f"{self.group_size}: choose another group_size"
            )
        return None

    def storage(self, bits: int) -> StorageFormat:
        self.check_bits(bits)
        return _GPTQFormat(bits, self.group_size)

    def encode(self, weight: Tensor, bits: int, hessian: Tensor | None) -> dict[str, Tensor]:
        hessian = check_hessian(self.name, hessian, weight)
        from gptqmodel.quantization import QuantizeConfig
        from gptqmodel.quantization.gptq import GPTQ

        # A copy: the library writes to the layer that it quantizes.
        out_features, in_features = weight.shape
        source = nn.Linear(in_features, out_features, bias=False, device=weight.device)
        source.weight.data.copy_(weight)
        config = QuantizeConfig(
            bits=bits,
            group_size=self.group_size,
            sym=False,
            damp_percent=self.damping,
            fallback=None,
            offload_to_disk=False,
        )
        task = GPTQ(source, config)
        task.quantizer.configure(perchannel=True)
        # What `add_batch` gathers from inputs, twice their mean of x xᵀ; the count only scales a loss that is logged.
        task.H, task.nsamples = 2 * hessian.float(), 1
        source.weight.data, scale, zero, groups, *_ = task.quantize()
        shape = {"out_features": out_features, "in_features": in_features}
        packed = self._module({}, bits, shape, None, weight.dtype)
        packed.pack_original(source.cpu(), scale.cpu(), zero.cpu(), groups.cpu())
        return {name: getattr(packed, name).to(weight.device) for name in _GPTQFormat.NAMES}

    def dequantize(self, module: nn.Module) -> Tensor:
        return _own(module).dequantize()

    def to_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        return {name: getattr(_own(module), name).clone().contiguous() for name in _GPTQFormat.NAMES}

    def from_tensors(
        self,
        tensors: dict[str, Tensor],
        *,
        bits: int,
        out_features: int,
        in_features: int,
        bias: Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> nn.Module:
        self.check_shape(bits, out_features, in_features)
        groups = in_features // self.group_size
        expected = {
            "qweight": ((in_features * bits // 32, out_features), torch.int32),
            "qzeros": ((groups, out_features * bits // 32), torch.int32),
            "scales": ((groups, out_features), torch.float16),
            "g_idx": ((in_features,), torch.int32),
        }
        check_tensors(tensors, expected, f"gptqmodel at {bits} bits, group size {self.group_size}")
        shape = {"out_features": out_features, "in_features": in_features}
        return self._module(tensors, bits, shape, copy_bias(bias, dtype, tensors["qweight"].device), dtype)

    def _module(
        self,
        tensors: dict[str, Tensor],
        bits: int,
        shape: dict[str, int],
        bias: nn.Parameter | None,
        dtype: torch.dtype,
    ) -> Any:
        from qra_backends.libraries.gptqmodel_linear import GPTQLinear

        return GPTQLinear(tensors, bits=bits, group_size=self.group_size, **shape, bias=bias, dtype=dtype)


@dataclass(frozen=True)
class _GPTQFormat:
    bits: int
    group_size: int

    NAMES: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")

    def bytes(self, out_features: int, in_features: int) -> int:
        groups = in_features // self.group_size
        words = (in_features + groups) * out_features * self.bits // 8
        return words + 2 * groups * out_features + 4 * in_features


def _own(module: nn.Module) -> Any:
    if not all(hasattr(module, name) for name in (*_GPTQFormat.NAMES, "dequantize")):
        raise ValueError(f"expected a GPTQLinear made by this backend, got {type(module).__name__}")
    return module
