"""Spaces and plans as plain data, which journals and plan files hold; a `plan.json` read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qra_search.errors import BadInput, convert_to_bad_input, shorten
from qra_search.files import read_json
from qra_search.schemas import Group, LevelName, Parameter, Plan, make_adapter
from qra_search.space.levels import Level
from qra_search.space.space import SearchSpace

PLAN_FORMAT = "qra-plan/1"
PLAN_NAME = "plan.json"


@dataclass(frozen=True)
class TabulatedFormat:
    """Bytes of a weight by its shape, as they were counted when the space was recorded."""

    sizes: Mapping[tuple[int, int], int]

    def bytes(self, out_features: int, in_features: int) -> int:
        return self.sizes[out_features, in_features]


def space_to_dict(space: SearchSpace) -> dict[str, Any]:
    """A space as plain data, with the bytes of every shape at every level in place of its formats."""
    shapes = sorted({(m.out_features, m.in_features) for g in space.groups for m in g.linears})
    named = {
        v.name: {"width": v.width, "backend": v.backend} for v in space.levels if isinstance(v.name, str)
    }
    return {
        "groups": [make_adapter(Group).dump_python(group, exclude_defaults=True) for group in space.groups],
        "bits": list(space.bits),
        "ranks": list(space.ranks),
        "fixed_bytes": space.fixed_bytes,
        "adapter_bits": space.adapter_bits,
        "shapes": [list(shape) for shape in shapes],
        **({"levels": named} if named else {}),
        "bytes": {str(v.name): [int(v.format.bytes(*shape)) for shape in shapes] for v in space.levels},
        **({"extra": {n: p.to_dict() for n, p in space.extra.items()}} if space.extra else {}),
    }


def space_from_dict(data: Mapping[str, Any]) -> SearchSpace:
    """The inverse of `space_to_dict`: a space of equal signature."""
    shapes = [tuple(shape) for shape in data["shapes"]]

    def level(name: LevelName) -> Level:
        more = {"width": name} if isinstance(name, int) else data["levels"][name]
        return Level(
            name, **more, format=TabulatedFormat(dict(zip(shapes, data["bytes"][str(name)], strict=True)))
        )

    return SearchSpace(
        groups=[Group(**group) for group in data["groups"]],
        bits=[level(name) for name in data["bits"]],
        ranks=data["ranks"],
        fixed_bytes=data["fixed_bytes"],
        adapter_bits=data["adapter_bits"],
        extra={name: Parameter.from_dict(given) for name, given in data.get("extra", {}).items()},
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
            "memory_bytes": int(space.memory.choice_bytes[i, b[i], r[i]]),
            "linears": [linear.name for linear in group.linears],
        }
        for i, group in enumerate(space.groups)
        for level in [space.level(plan.bits[i])]
    ]
    return {
        "format": PLAN_FORMAT,
        "memory_bytes": space.memory_bytes(plan),
        "fixed_bytes": space.fixed_bytes,
        **({"extra": dict(plan.extra)} if plan.extra else {}),
        "groups": groups,
    }


def read_choices(data: Mapping[str, Any]) -> dict[str, tuple[LevelName, int]]:
    """Bits and rank by group, of a plan as plain data; raises ValueError if it has another form."""
    try:
        chosen = {str(g["name"]): (g["bits"], g["rank"]) for g in data["groups"]}
    except (LookupError, TypeError, AttributeError):
        raise ValueError("the plan's groups are not a list of mappings with name, bits and rank") from None
    if len(chosen) < len(data["groups"]):
        names = [str(g["name"]) for g in data["groups"]]
        raise ValueError(
            f"the plan has the group {next(n for n in names if names.count(n) > 1)} twice: leave one out"
        )
    return chosen


def plan_from_dict(space: SearchSpace, data: Mapping[str, Any]) -> Plan:
    """The plan of `plan_to_dict`, by the names of its groups; raises ValueError if it is none of the space."""
    chosen = read_choices(data)
    if different := sorted(set(space.names) ^ set(chosen)):
        raise ValueError(
            f"the plan belongs to another search space: its groups differ ({', '.join(different[:3])})"
        )
    try:
        bits, ranks = (tuple(chosen[name][side] for name in space.names) for side in (0, 1))
        plan = Plan(bits, ranks, tuple(data.get("extra", {}).items()))
    except TypeError as error:
        raise ValueError(str(error)) from None
    space.encode(plan)
    return plan


def read_plan(space: SearchSpace, path: Path) -> Plan:
    """The plan of a `plan.json`, or of the run in a folder; raises BadInput if there is none of this space."""
    with convert_to_bad_input():
        return plan_from_dict(space, read_plan_file(path))


def read_plan_file(path: Path) -> dict[str, Any]:
    """What a `plan.json`, or that of the run in a folder, holds; raises BadInput if there is none."""
    file = path / PLAN_NAME if path.is_dir() else path
    with convert_to_bad_input():
        data = read_json(file)
    if not isinstance(data, dict):
        raise BadInput(
            f"{file} {'does not exist' if data is None else 'is not a plan'}: give a plan.json or a run"
        )
    if data.get("format") != PLAN_FORMAT:
        raise BadInput(
            f"{file} is not a plan: plan format is {shorten(data.get('format'))}, {PLAN_FORMAT!r} is needed"
        )
    return data
