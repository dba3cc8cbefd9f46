"""Spaces and plans as plain data, which journals and plan files hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qra_search.space.groups import Group
from qra_search.space.levels import Level, LevelName
from qra_search.space.plan import Plan
from qra_search.space.space import SearchSpace

PLAN_FORMAT = "qra-plan/1"


@dataclass(frozen=True)
class TabulatedFormat:
    """Bytes of a weight by its shape, as they were counted when the space was recorded."""

    sizes: Mapping[tuple[int, int], int]

    def bytes(self, out_features: int, in_features: int) -> int:
        try:
            return self.sizes[out_features, in_features]
        except KeyError:
            raise ValueError(f"no bytes were recorded for a {out_features} x {in_features} weight") from None


def space_to_dict(space: SearchSpace) -> dict[str, Any]:
    """A space as plain data, with the bytes of every shape at every level in place of its formats."""
    shapes = sorted({(m.out_features, m.in_features) for g in space.groups for m in g.linears})
    named = {v.name: {"width": v.width, "backend": v.backend} for v in space.levels if isinstance(v.name, str)}
    return {
        "groups": [group.model_dump(exclude_defaults=True) for group in space.groups],
        "bits": list(space.bits),
        "ranks": list(space.ranks),
        "fixed_bytes": space.fixed_bytes,
        "adapter_bits": space.adapter_bits,
        "shapes": [list(shape) for shape in shapes],
        **({"levels": named} if named else {}),
        "bytes": {str(v.name): [int(v.format.bytes(*shape)) for shape in shapes] for v in space.levels},
    }


def space_from_dict(data: Mapping[str, Any]) -> SearchSpace:
    """The inverse of `space_to_dict`: a space of equal signature."""
    shapes = [tuple(shape) for shape in data["shapes"]]

    def level(name: LevelName) -> Level:
        more = {"width": name} if isinstance(name, int) else data["levels"][name]
        return Level(name, **more, format=TabulatedFormat(dict(zip(shapes, data["bytes"][str(name)], strict=True))))

    return SearchSpace(
        groups=[Group(**group) for group in data["groups"]],
        bits=[level(name) for name in data["bits"]],
        ranks=data["ranks"],
        fixed_bytes=data["fixed_bytes"],
        adapter_bits=data["adapter_bits"],
    )


def plan_to_dict(space: SearchSpace, plan: Plan) -> dict[str, Any]:
    """A plan as plain data that stands alone: every group with its linears, bits, rank and bytes."""
    b, r = space.encode(plan)
    groups = [
        {
            "name": group.name,
            "bits": plan.bits[i],
            **({} if isinstance(level.name, int) else {"width": level.width, "backend": level.backend}),
            "rank": plan.ranks[i],
            "memory_bytes": int(space.memory.choice[i, b[i], r[i]]),
            "linears": [linear.name for linear in group.linears],
        }
        for i, group in enumerate(space.groups)
        for level in [space.level(plan.bits[i])]
    ]
    return {
        "format": PLAN_FORMAT,
        "memory_bytes": space.memory_bytes(plan),
        "fixed_bytes": space.fixed_bytes,
        "groups": groups,
    }


def choices_in(data: Mapping[str, Any]) -> dict[str, tuple[LevelName, int]]:
    """Bits and rank by group, of a plan as plain data; whether a space allows them is not looked at.

    Raises:
        ValueError: its groups are not of that form, or one comes twice.
    """
    try:
        chosen = {str(g["name"]): (g["bits"], g["rank"]) for g in data["groups"]}
    except (LookupError, TypeError, AttributeError):
        raise ValueError("the plan's groups are not a list of mappings with name, bits and rank") from None
    if len(chosen) < len(data["groups"]):
        names = [str(g["name"]) for g in data["groups"]]
        raise ValueError(f"the plan has the group {next(n for n in names if names.count(n) > 1)} twice: leave one out")
    return chosen


def plan_from_dict(space: SearchSpace, data: Mapping[str, Any]) -> Plan:
    """The plan of `plan_to_dict`, by the names of its groups.

    Raises:
        ValueError: another format, a group that is missing, unknown or there twice, or a choice not allowed.
    """
    known = data.get("format") if isinstance(data, Mapping) else None
    if known != PLAN_FORMAT:
        raise ValueError(f"plan format is {repr(known)[:80]}, {PLAN_FORMAT!r} is needed")
    chosen = choices_in(data)
    missing, unknown = set(space.names) - set(chosen), set(chosen) - set(space.names)
    if missing or unknown:
        lacks = f"it lacks {', '.join(sorted(missing)[:3])}" if missing else ""
        more = f"it has {', '.join(sorted(unknown)[:3])} besides" if unknown else ""
        raise ValueError(
            f"the plan is of another space: {' and '.join(filter(None, (lacks, more)))}: give one of this run"
        )
    try:
        plan = Plan(tuple(chosen[n][0] for n in space.names), tuple(chosen[n][1] for n in space.names))
    except TypeError as error:
        raise ValueError(str(error)) from None
    space.encode(plan)
    return plan
