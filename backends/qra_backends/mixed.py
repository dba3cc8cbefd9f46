"""Backend `mixed`: another backend for each bit-width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qra_backends.base import Backend
from qra_backends.registry import Spec, make_backend
from qra_backends.storage import StorageFormat

DEFAULT_CHOICE: dict[int, Spec] = {2: "hqq", 3: "hqq", 4: "bitsandbytes-nf4", 8: "bitsandbytes-int8"}
CALIBRATED_CHOICE: dict[int, Spec] = {
    2: "reference-gptq",
    3: "reference-gptq",
    4: "reference-gptq",
    8: "bitsandbytes-int8",
}
_BITS = "qra_bits"  # attribute of a module, to find its backend again


class MixedBackend(Backend):
    """Hands each bit-width to the backend chosen for it.

    Args:
        choice: bits to a backend's spec, as `make_backend` takes it; text keys are read as numbers.
    """

    name: ClassVar[str] = "mixed"
    variants: ClassVar[dict[str, dict[str, Any]]] = {"calibrated": {"choice": CALIBRATED_CHOICE}}

    def __init__(self, *, choice: Mapping[int | str, Spec] | None = None):
        self.parts: dict[int, Backend] = {}
        for key, spec in sorted((choice or DEFAULT_CHOICE).items(), key=lambda item: int(item[0])):
            bits, part = int(key), make_backend(spec)
            if bits not in part.bits:
                raise ValueError(f"the choice for {bits} bits cannot be: {part.supports(bits, 0, 0)}")
            self.parts[bits] = part
        self.bits = tuple(self.parts)
        devices = [set(part.devices) for part in self.parts.values()]
        self.devices = tuple(d for d in next(iter(self.parts.values())).devices if all(d in some for some in devices))
        self.calibrated = any(part.calibrated for part in self.parts.values())
        self.options = {"choice": {str(bits): part.spec for bits, part in self.parts.items()}}

    def unavailable(self) -> str | None:
        reasons = {part.name: part.unavailable() for part in self.parts.values()}
        return "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason) or None

    def supports(self, bits: int, out_features: int, in_features: int) -> str | None:
        reason = super().supports(bits, out_features, in_features)
        return reason or self.parts[bits].supports(bits, out_features, in_features)

    def storage(self, bits: int) -> StorageFormat:
        return self.part(bits).storage(bits)

    def part(self, bits: int) -> Backend:
        """The backend chosen for `bits`.

        Raises:
            ValueError: none is.
        """
        self.check_bits(bits)
        return self.parts[bits]

    def quantize(self, linear: nn.Linear, bits: int, *, hessian: Tensor | None = None) -> nn.Module:
        return _marked(self.part(bits).quantize(linear, bits, hessian=hessian), bits)

    def dequantize(self, module: nn.Module) -> Tensor:
        return self._part_of(module).dequantize(module)

    def to_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        return self._part_of(module).to_tensors(module)

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
        shape: dict[str, Any] = {"out_features": out_features, "in_features": in_features}
        return _marked(self.part(bits).from_tensors(tensors, bits=bits, **shape, bias=bias, dtype=dtype), bits)

    def _part_of(self, module: nn.Module) -> Backend:
        bits = getattr(module, _BITS, None)
        if bits is None:
            raise ValueError(f"expected a layer made by the backend mixed, got an unmarked {type(module).__name__}")
        return self.part(bits)


def _marked(module: nn.Module, bits: int) -> nn.Module:
    setattr(module, _BITS, bits)
    return module
