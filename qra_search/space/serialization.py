"""Spaces and plans as plain data, which journals and plan files hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qra_search.space.memory import level_width
from qra_search.space.space import Group, Linear, Plan, SearchSpace

PLAN_FORMAT = "qra-plan/1"


@dataclass(frozen=True)
class TabulatedFormat:
    """Bytes of a weight by its shape, as they were counted when the space was recorded."""

    bits: int
    sizes: Mapping[tuple[int, int], int]

    def bytes(self, out_features: int, in_features: int) -> int:
        try:
            return self.sizes[out_features, in_features]
        except KeyError:
            raise ValueError(f"no bytes were recorded for a {out_features} x {in_features} weight") from None


def space_to_dict(space: SearchSpace) -> dict[str, Any]:
    """A space as plain data, with the bytes of every shape at every bit-width in place of its formats."""
    shapes = sorted({(m.out_features, m.in_features) for g in space.groups for m in g.linears})
    return {
        "groups": [group.model_dump(exclude_defaults=True) for group in space.groups],
        "bits": list(space.bits),
        "ranks": list(space.ranks),
        "fixed_bytes": space.fixed_bytes,
        "adapter_bits": space.adapter_bits,
        "shapes": [list(shape) for shape in shapes],
        **({"backends": {str(b): name for b, name in space.backends.items()}} if space.backends else {}),
        "bytes": {str(b): [int(space.format(b).bytes(*shape)) for shape in shapes] for b in space.bits},
    }


def space_from_dict(data: Mapping[str, Any]) -> SearchSpace:
    """The inverse of `space_to_dict`: a space of equal signature."""
    shapes = [tuple(shape) for shape in data["shapes"]]
    formats = {
        int(b): TabulatedFormat(int(b), dict(zip(shapes, sizes, strict=True))) for b, sizes in data["bytes"].items()
    }
    groups = tuple(
        Group(**{**group, "linears": tuple(Linear(**linear) for linear in group["linears"])})
        for group in data["groups"]
    )
    return SearchSpace(
        groups=groups,
        bits=tuple(data["bits"]),
        ranks=tuple(data["ranks"]),
        formats=formats,
        backends={int(b): name for b, name in data.get("backends", {}).items()},
        fixed_bytes=data["fixed_bytes"],
        adapter_bits=data["adapter_bits"],
    )


def plan_to_dict(space: SearchSpace, plan: Plan) -> dict[str, Any]:
    """A plan as plain data that stands alone: every group with its linears, bits, rank and bytes."""
    b, r = space.encode(plan)
    groups = [
        {
            "name": group.name,
            "bits": level_width(plan.bits[i]),
            **_way(space, plan.bits[i]),
            "rank": plan.ranks[i],
            "memory_bytes": int(space.memory.choice[i, b[i], r[i]]),
            "linears": [linear.name for linear in group.linears],
        }
        for i, group in enumerate(space.groups)
    ]
    return {
        "format": PLAN_FORMAT,
        "memory_bytes": space.memory_bytes(plan),
        "fixed_bytes": space.fixed_bytes,
        "groups": groups,
    }


def _way(space: SearchSpace, level: int) -> dict[str, Any]:
    """How the bits are stored, where that is a choice: the level, and the backend's name."""
    way: dict[str, Any] = {} if level == level_width(level) else {"level": level}
    return {**way, "backend": space.backends[level]} if level in space.backends else way


def plan_from_dict(space: SearchSpace, data: Mapping[str, Any]) -> Plan:
    """The plan of `plan_to_dict`, by the names of its groups.

    Raises:
        ValueError: another format, a group that is missing or unknown, or a choice the space does not allow.
    """
    known = data.get("format") if isinstance(data, Mapping) else None
    if known != PLAN_FORMAT:
        raise ValueError(f"plan format is {repr(known)[:80]}, {PLAN_FORMAT!r} is needed")
    try:
        chosen = {str(g["name"]): (g.get("level", g["bits"]), g["rank"]) for g in data["groups"]}
    except (LookupError, TypeError, AttributeError):
        raise ValueError("the plan's groups are not a list of mappings with name, bits and rank") from None
    if any(type(choice) is not int for pair in chosen.values() for choice in pair):
        raise ValueError("the plan has bits or ranks that are no whole numbers")
    missing, unknown = set(space.names) - set(chosen), set(chosen) - set(space.names)
    if missing or unknown:
        raise ValueError(
            f"the plan is of another space: it lacks {sorted(missing)[:3]} and has {sorted(unknown)[:3]} besides"
        )
    plan = Plan(tuple(chosen[n][0] for n in space.names), tuple(chosen[n][1] for n in space.names))
    space.encode(plan)
    return plan
