"""Backends by name: found through the entry-point group `qra.backends`, so that other packages add their own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from qra_backends.base import Backend

ENTRY_POINT_GROUP = "qra.backends"

Spec = str | Mapping[Any, Any] | Backend


def make_backend(spec: Spec) -> Backend:
    """A backend from its spec.

    `"trellis"` is a name; `"bitsandbytes-nf4"` a name and one of its variants; `{"name": "trellis", "L": 14}` a name
    with options; `{2: "trellis", 4: {"name": "reference", "group_size": 32}}` another backend for each bit-width.

    Raises:
        ValueError: an unknown name (the message gives the nearest), an unknown or wrong option, a malformed spec.
    """
    if isinstance(spec, Backend):
        return spec
    if isinstance(spec, str):
        return _build_backend(spec, {})
    if not isinstance(spec, Mapping) or not spec:
        raise ValueError(
            f"a backend must be a name, a mapping with the key 'name', or a mapping from bit-widths to backends, "
            f"got {spec!r}"
        )
    if "name" in spec:
        return _build_backend(str(spec["name"]), {key: value for key, value in spec.items() if key != "name"})
    return _build_backend("mixed", {"choice": spec})


def backend_names() -> list[str]:
    """Registered names, without variants."""
    return sorted(_find_entry_points())


@cache
def _find_entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _build_backend(name: str, options: dict[str, Any]) -> Backend:
    cls, preset = _find_class(name)
    known = inspect.signature(cls).parameters
    unknown = options.keys() - known.keys()
    if unknown:
        raise ValueError(
            f"backend {name!r} has no option {min(unknown)!r}: choose from {', '.join(sorted(known))}"
        )
    return cls(**preset | options)


def _find_class(name: str) -> tuple[type[Backend], dict[str, Any]]:
    """The class of a name, and the options of its variant."""
    points = _find_entry_points()
    if name in points:
        return _load(points[name]), {}
    base, _, variant = name.rpartition("-")
    known: list[str] = []
    if base in points:
        cls = _load(points[base])
        if variant in cls.variants:
            return cls, cls.variants[variant]
        known = [f"{base}-{other}" for other in cls.variants]
    near = get_close_matches(name, [*points, *known], n=3, cutoff=0.5) or known
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"unknown backend {name!r}: {hint}choose one of {', '.join(sorted(points))}")


def _load(point: EntryPoint) -> type[Backend]:
    try:
        cls: type[Backend] = point.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"backend {point.name!r} ({point.value}) cannot be loaded: {error}") from error
    return cls


def read_width(key: object) -> float | None:
    """The bits that a number or its text stands for, whole or not; None if it is neither."""
    try:
        bits = float(str(key))
    except ValueError:
        return None
    return int(bits) if bits.is_integer() else bits
