"""Backend `mixed`: another backend for each bit-width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qra_backends.base import Backend, Level
from qra_backends.registry import Spec, make_backend, read_width

_ROUNDED: Spec = {"name": "reference", "ranges": "mse"}
DEFAULT_CHOICE: dict[float, Spec] = {
    2: _ROUNDED,
    3: _ROUNDED,
    4: "bitsandbytes-nf4",
    5: _ROUNDED,
    6: _ROUNDED,
    8: "bitsandbytes-int8",
}
TRELLIS_BITS = (1, 1.5, 2, 2.5, 3, 3.5, 4, 5)
"""Widths at which trellis codes lose less than others of more bits: see docs/trellis.md."""
CALIBRATED_CHOICE: dict[float, Spec] = dict.fromkeys(TRELLIS_BITS, "trellis")
CALIBRATED_CHOICE |= {6: "reference-gptq", 8: "bitsandbytes-int8"}


def _delegate_by_level(method: str) -> Any:
    """A method that asks the backend of a level about its own level."""

    def call_backend(self: MixedBackend, bits: Level, *args: Any, **named: Any) -> Any:
        backend, level = self._get_part(bits)
        return getattr(backend, method)(level, *args, **named)

    return call_backend


def _delegate_by_module(method: str) -> Any:
    """A method that asks the backend that made a module."""

    def call_backend(self: MixedBackend, module: nn.Module, *args: Any) -> Any:
        return getattr(self._find_backend(module), method)(module, *args)

    return call_backend


class MixedBackend(Backend):
    """Hands each level to the backend chosen for it.

    A whole width is a level itself. Others are called as in their backends, such as `trellis-1.5`.

    Args:
        choice: bits to a backend's spec, as `make_backend` takes it; text keys are read as numbers.
    """

    name: ClassVar[str] = "mixed"
    layer = nn.Module
    variants: ClassVar[dict[str, dict[str, Any]]] = {"calibrated": {"choice": CALIBRATED_CHOICE}}

    def __init__(self, *, choice: Mapping[float | str, Spec] | None = None):
        chosen: dict[float, Spec] = {}
        for key, spec in (choice or DEFAULT_CHOICE).items():
            width = read_width(key)
            if width is None:
                raise ValueError(
                    f"a backend as a mapping needs the key `name`, or only bit-widths as keys, got the key {key!r}"
                )
            chosen[width] = spec
        self._parts: dict[Level, tuple[Backend, Level]] = {}
        equal: dict[str, Backend] = {}
        for bits in sorted(chosen):
            backend = make_backend(chosen[bits])
            backend = equal.setdefault(repr(backend.spec), backend)  # so that its levels share their work
            levels = [level for level in backend.bits if backend.width(level) == bits]
            if not levels:
                reason = backend.unsupported_reason(bits, 0, 0)
                raise ValueError(f"the backend chosen for {bits} bits cannot be used: {reason}")
            if len(levels) > 1:
                names = ", ".join(map(str, levels))
                raise ValueError(
                    f"backend {backend.name!r} has several levels of {bits} bits ({names}): choose one by its options"
                )
            self._parts[bits if isinstance(bits, int) else levels[0]] = backend, levels[0]
        self.bits = tuple(self._parts)
        backends = [backend for backend, _ in self._parts.values()]
        self.devices = tuple(
            device for device in backends[0].devices if all(device in backend.devices for backend in backends)
        )
        self.calibrated = any(backend.calibrated for backend in backends)
        self.side_by_side = all(backend.side_by_side for backend in backends)
        specs = zip(sorted(chosen), backends, strict=True)
        self.options = {"choice": {str(bits): backend.spec for bits, backend in specs}}

    def unavailable_reason(self, levels: Sequence[Level] | None = None) -> str | None:
        reasons = {
            backend.name: backend.unavailable_reason(list(own.values()))
            for backend, own in self._group_by_backend(self.bits if levels is None else levels)
        }
        return "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason) or None

    # What is chosen for one level does not touch another: all is as the part's backend has it.
    storage, width, describe_tensors = map(_delegate_by_level, ("storage", "width", "describe_tensors"))
    is_calibrated, identity, count_trainable = map(
        _delegate_by_level, ("is_calibrated", "identity", "count_trainable")
    )
    dequantize, dequantize_rows = map(_delegate_by_module, ("dequantize", "dequantize_rows"))
    to_tensors, get_scales = map(_delegate_by_module, ("to_tensors", "get_scales"))
    replace_scales = _delegate_by_module("replace_scales")

    def unsupported_reason(self, bits: Level, out_features: int, in_features: int) -> str | None:
        if bits not in self.bits:
            return super().unsupported_reason(bits, out_features, in_features)
        backend, level = self._parts[bits]
        return backend.unsupported_reason(level, out_features, in_features)

    def quantize_levels(
        self, linear: nn.Linear, levels: Sequence[Level], **calibration: Tensor | None
    ) -> dict[Level, nn.Module]:
        modules: dict[Level, nn.Module] = {}
        for backend, own in self._group_by_backend(levels):
            made = backend.quantize_levels(linear, list(own.values()), **calibration)
            modules |= {bits: made[level] for bits, level in own.items()}
        return {bits: modules[bits] for bits in levels}

    def probe_levels(
        self, linear: nn.Linear, levels: Sequence[Level], **calibration: Tensor | None
    ) -> list[tuple[nn.Module, dict[Level, float]]]:
        found: list[tuple[nn.Module, dict[Level, float]]] = []
        for backend, own in self._group_by_backend(levels):
            for module, ratios in backend.probe_levels(linear, list(own.values()), **calibration):
                foretold = {bits: ratios[level] for bits, level in own.items() if level in ratios}
                found.append((module, foretold))
        return found

    def count_work_bytes(
        self, levels: Sequence[Level], out_features: int, in_features: int, dtype: torch.dtype, device: str
    ) -> int:
        return max(
            backend.count_work_bytes(list(own.values()), out_features, in_features, dtype, device)
            for backend, own in self._group_by_backend(levels)
        )

    def make_module(self, tensors: dict[str, Tensor], bits: Level, **form: Any) -> nn.Module:
        backend, level = self._get_part(bits)
        return backend.make_module(tensors, level, **form)

    def _group_by_backend(self, levels: Sequence[Level]) -> list[tuple[Backend, dict[Level, Level]]]:
        """The backends of some levels, each with what its own levels are called there."""
        found: dict[int, tuple[Backend, dict[Level, Level]]] = {}
        for bits in levels:
            backend, level = self._get_part(bits)
            found.setdefault(id(backend), (backend, {}))[1][bits] = level
        return list(found.values())

    def _get_part(self, bits: Level) -> tuple[Backend, Level]:
        self.check_bits(bits)
        return self._parts[bits]

    def _find_backend(self, module: nn.Module) -> Backend:
        """A backend of the module's class: all that have it read it in the same way."""
        for backend, _ in self._parts.values():
            if isinstance(module, backend.layer):
                return backend
        raise ValueError(f"backend 'mixed' reads only layers that it made, got a {type(module).__name__}")
