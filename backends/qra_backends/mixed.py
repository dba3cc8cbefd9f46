"""Backend `mixed`: another backend for each bit-width, or several for one, to be chosen from like the bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
TRELLIS = (1, 1.5, 2, 2.5, 3, 3.5, 4, 5)
"""Widths at which trellis codes lose less than others of more bits: see docs/trellis.md."""
CALIBRATED_CHOICE: dict[float, Spec] = dict.fromkeys(TRELLIS, "trellis")
CALIBRATED_CHOICE |= {6: "reference-gptq", 8: "bitsandbytes-int8"}


@dataclass(frozen=True)
class _BackendLevel:
    """A backend, the level of its own that is used of it, and both in words."""

    backend: Backend
    level: Level
    words: str


def _delegate_by_level(method: str) -> Any:
    """A method that asks the backend of a level about its own level."""

    def call_backend(self: MixedBackend, bits: Level, *args: Any, **named: Any) -> Any:
        part = self._get_backend_level(bits)
        return getattr(part.backend, method)(part.level, *args, **named)

    return call_backend


def _delegate_by_module(method: str) -> Any:
    """A method that asks the backend that made a module."""

    def call_backend(self: MixedBackend, module: nn.Module, *args: Any) -> Any:
        return getattr(self._find_backend(module), method)(module, *args)

    return call_backend


class MixedBackend(Backend):
    """Hands each level to the backend chosen for it.

    A whole width that is stored in one way is a level itself. Others have the names that their backends give them:
    `{4: ["bitsandbytes-nf4", "reference"]}` has the levels `nf4` and `reference-4`. A name that is taken gets a number:
    `reference-4-2`.

    Args:
        choice: bits to a backend's spec, as `make_backend` takes it, or to a list of them; text keys are read as
            numbers.
    """

    name: ClassVar[str] = "mixed"
    layer = nn.Module
    variants: ClassVar[dict[str, dict[str, Any]]] = {"calibrated": {"choice": CALIBRATED_CHOICE}}

    def __init__(self, *, choice: Mapping[float | str, Spec | Sequence[Spec]] | None = None):
        self._backend_levels: dict[Level, _BackendLevel] = {}
        if choice is not None and not isinstance(choice, Mapping):
            raise ValueError(f"choice must be a mapping of bit-widths to backends, got {choice!r}")
        several: dict[str, Any] = {}
        chosen: dict[float, Any] = {}
        for key, given in (choice or DEFAULT_CHOICE).items():
            width = read_width(key)
            if width is None:
                raise ValueError(f"a mapping of backends must have bit-widths as keys, got {key!r}")
            chosen[width] = given
        for bits, given in sorted(chosen.items(), key=lambda item: item[0]):
            specs: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
            if not specs:
                raise ValueError(f"the choice for {bits} bits is empty: name a backend")
            backends = [self._reuse_backend(make_backend(spec)) for spec in specs]
            parts = [
                part
                for spec, backend in zip(specs, backends, strict=True)
                for part in _list_backend_levels(spec, backend, bits)
            ]
            whole = len(parts) == 1 and isinstance(bits, int)
            for part in parts:
                name = bits if whole else self._make_name(part.backend.level_name(part.level))
                self._backend_levels[name] = part
            options = [backend.spec for backend in backends]
            twice = next((spec for i, spec in enumerate(specs) if options[i] in options[:i]), None)
            if twice is not None:
                raise ValueError(f"the choice for {bits} bits has the backend {twice!r} twice")
            several[str(bits)] = options if len(options) > 1 else options[0]
        self.bits = tuple(self._backend_levels)
        parts = list(self._backend_levels.values())
        devices = [part.backend.devices for part in parts]
        self.devices = tuple(device for device in devices[0] if all(device in own for own in devices))
        self.calibrated = any(part.backend.calibrated for part in parts)
        self.side_by_side = all(part.backend.side_by_side for part in parts)
        self.options = {"choice": several}

    def unavailable_reason(self, levels: Sequence[Level] | None = None) -> str | None:
        reasons = {
            backend.name: backend.unavailable_reason(list(own.values()))
            for backend, own in self._group_by_backend(self.bits if levels is None else levels)
        }
        return "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason) or None

    # What is chosen for one level does not touch another: all is as the part's backend has it.
    storage, width, list_tensor_specs = map(_delegate_by_level, ("storage", "width", "list_tensor_specs"))
    is_calibrated, identity, count_trainable = map(
        _delegate_by_level, ("is_calibrated", "identity", "count_trainable")
    )
    dequantize, dequantize_rows = map(_delegate_by_module, ("dequantize", "dequantize_rows"))
    to_tensors, get_scales = map(_delegate_by_module, ("to_tensors", "get_scales"))
    replace_scales = _delegate_by_module("replace_scales")

    def describe(self, bits: Level) -> str:
        return self._get_backend_level(bits).words

    def unsupported_reason(self, bits: Level, out_features: int, in_features: int) -> str | None:
        if bits not in self.bits:
            return super().unsupported_reason(bits, out_features, in_features)
        part = self._backend_levels[bits]
        return part.backend.unsupported_reason(part.level, out_features, in_features)

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
        part = self._get_backend_level(bits)
        return part.backend.make_module(tensors, part.level, **form)

    def _reuse_backend(self, backend: Backend) -> Backend:
        """An equal backend that a part has already, so that its levels share their work; else the one given."""
        parts = (part.backend for part in self._backend_levels.values())
        return next((b for b in parts if type(b) is type(backend) and b.spec == backend.spec), backend)

    def _group_by_backend(self, levels: Sequence[Level]) -> list[tuple[Backend, dict[Level, Level]]]:
        """The backends of some levels, each with what its own levels are called there."""
        found: dict[int, tuple[Backend, dict[Level, Level]]] = {}
        for bits in levels:
            part = self._get_backend_level(bits)
            found.setdefault(id(part.backend), (part.backend, {}))[1][bits] = part.level
        return list(found.values())

    def _get_backend_level(self, bits: Level) -> _BackendLevel:
        self.check_bits(bits)
        return self._backend_levels[bits]

    def _make_name(self, name: str) -> str:
        """The name, or the first of `name-2`, `name-3`, ... that no level has yet."""
        names = (name, *(f"{name}-{number}" for number in range(2, len(self._backend_levels) + 3)))
        return next(free for free in names if free not in self._backend_levels)

    def _find_backend(self, module: nn.Module) -> Backend:
        """A backend of the module's class: all that have it read it in the same way."""
        backends = [part.backend for part in self._backend_levels.values()]
        exact = [backend for backend in backends if type(module) is backend.layer]
        found = exact or [backend for backend in backends if isinstance(module, backend.layer)]
        if not found:
            raise ValueError(f"no level of the backend 'mixed' made this {type(module).__name__}")
        return found[0]


def _list_backend_levels(spec: Any, backend: Backend, bits: float) -> list[_BackendLevel]:
    """The ways in which a backend stores so many bits."""
    words = spec if isinstance(spec, str) else backend.name
    if isinstance(spec, Mapping):
        options = [f"{option} {value}" for option, value in spec.items() if option != "name"]
        words = ", ".join([words, *options])
    found = [_BackendLevel(backend, level, words) for level in backend.bits if backend.width(level) == bits]
    if not found:
        raise ValueError(f"unsupported backend for {bits} bits: {backend.unsupported_reason(bits, 0, 0)}")
    return found
