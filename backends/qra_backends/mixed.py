"""Backend `mixed`: another backend for each bit-width, or several for one, to be chosen from like the bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qra_backends.base import Backend
from qra_backends.registry import Spec, make_backend
from qra_backends.storage import LEVEL_STEP, StorageFormat, level_width

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

    Where several backends are given for one width, `bits` has a level for each: 4, 104, 204, ... (`LEVEL_STEP`).

    Args:
        choice: bits to a backend's spec, as `make_backend` takes it, or to a list of them; text keys are read as
            numbers.
    """

    name: ClassVar[str] = "mixed"
    variants: ClassVar[dict[str, dict[str, Any]]] = {"calibrated": {"choice": CALIBRATED_CHOICE}}

    def __init__(self, *, choice: Mapping[int | str, Spec | Sequence[Spec]] | None = None):
        self.parts: dict[int, Backend] = {}
        self._labels: dict[int, str] = {}
        several: dict[str, Any] = {}
        for key, given in sorted((choice or DEFAULT_CHOICE).items(), key=lambda item: int(item[0])):
            bits = int(key)
            specs: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
            if not specs:
                raise ValueError(f"the choice for {bits} bits is empty: name a backend")
            for further, spec in enumerate(specs):
                part = make_backend(spec)
                if bits not in part.bits:
                    raise ValueError(f"the choice for {bits} bits cannot be: {part.supports(bits, 0, 0)}")
                if any(part.spec == other.spec for b, other in self.parts.items() if level_width(b) == bits):
                    raise ValueError(f"the choice for {bits} bits has the backend {spec!r} twice")
                self.parts[bits + LEVEL_STEP * further] = part
                self._labels[bits + LEVEL_STEP * further] = spec if isinstance(spec, str) else part.name
            parts = [self.parts[bits + LEVEL_STEP * i].spec for i in range(len(specs))]
            several[str(bits)] = parts if len(parts) > 1 else parts[0]
        self.bits = tuple(self.parts)
        devices = [set(part.devices) for part in self.parts.values()]
        self.devices = tuple(d for d in next(iter(self.parts.values())).devices if all(d in some for some in devices))
        self.calibrated = any(part.calibrated for part in self.parts.values())
        self.options = {"choice": several}

    def unavailable(self) -> str | None:
        reasons = {part.name: part.unavailable() for part in self.parts.values()}
        return "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason) or None

    def labels(self) -> dict[int, str]:
        return dict(self._labels) if any(b >= LEVEL_STEP for b in self.parts) else {}

    def supports(self, bits: int, out_features: int, in_features: int) -> str | None:
        reason = super().supports(bits, out_features, in_features)
        return reason or self.parts[bits].supports(level_width(bits), out_features, in_features)

    def storage(self, bits: int) -> StorageFormat:
        return self.part(bits).storage(level_width(bits))

    def part(self, bits: int) -> Backend:
        """The backend chosen for `bits`.

        Raises:
            ValueError: none is.
        """
        self.check_bits(bits)
        return self.parts[bits]

    def quantize(self, linear: nn.Linear, bits: int, *, hessian: Tensor | None = None) -> nn.Module:
        return _marked(self.part(bits).quantize(linear, level_width(bits), hessian=hessian), bits)

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
        module = self.part(bits).from_tensors(tensors, bits=level_width(bits), **shape, bias=bias, dtype=dtype)
        return _marked(module, bits)

    def _part_of(self, module: nn.Module) -> Backend:
        bits = getattr(module, _BITS, None)
        if bits is None:
            raise ValueError(f"expected a layer made by the backend mixed, got an unmarked {type(module).__name__}")
        return self.part(bits)


def _marked(module: nn.Module, bits: int) -> nn.Module:
    setattr(module, _BITS, bits)
    return module
