"""Spaces, plans and sensitivities as plain data, which journals and files hold; a `plan.json` read back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import StrictInt, StrictStr
from pydantic.dataclasses import dataclass

from qra_search.errors import BadInput, convert_to_bad_input, format_error, shorten
from qra_search.files import read_json, write_json
from qra_search.schemas import MODEL_CONFIG, LevelName, Plan, Schema, Sensitivities, make_adapter
from qra_search.space.space import SearchSpace

PLAN_FORMAT = "qra-plan/1"
PLAN_NAME = "plan.json"
SENSITIVITIES_FORMAT = "qra-sensitivities/1"


@dataclass(frozen=True, config=MODEL_CONFIG)
class PlannedGroup(Schema):
    """One group of a plan that stands alone; `width` and `backend` say what a level is that is named by a text."""

    name: str
    bits: StrictInt | StrictStr
    rank: StrictInt
    memory_bytes: int = 0
    linears: tuple[str, ...] = ()
    width: float | None = None
    backend: str = ""


def plan_to_dict(space: SearchSpace, plan: Plan) -> dict[str, Any]:
    """A plan as plain data that stands alone: every group with its linears, bits, rank and bytes."""
    sizes = space.memory.choice_bytes
    groups = []
    for i, (b, r) in enumerate(space.encode(plan).T[: len(space)]):
        level = space.levels[b]
        named = {} if isinstance(level.name, int) else {"width": level.width, "backend": level.backend}
        linears = tuple(linear.name for linear in space.groups[i].linears)
        groups.append(
            PlannedGroup(space.names[i], level.name, space.ranks[r], int(sizes[i, b, r]), linears, **named)
        )
    return {
        "format": PLAN_FORMAT,
        "memory_bytes": space.memory_bytes(plan),
        "fixed_bytes": space.fixed_bytes,
        "groups": make_adapter(list[PlannedGroup]).dump_python(groups, mode="json", exclude_defaults=True),
    }


def read_choices(data: Mapping[str, Any]) -> dict[str, tuple[LevelName, int]]:
    """Bits and rank by group, of a plan as plain data; raises ValueError if it has another form."""
    groups = make_adapter(list[PlannedGroup]).validate_python(data.get("groups"))
    return {group.name: (group.bits, group.rank) for group in groups}


def plan_from_dict(space: SearchSpace, data: Mapping[str, Any]) -> Plan:
    """The plan of `plan_to_dict`, by the names of its groups; raises BadInput if it is none of the space."""
    with convert_to_bad_input():
        chosen = read_choices(data)
        for fault, names in (
            ("lacks", set(space.names) - set(chosen)),
            ("has unknown", set(chosen) - set(space.names)),
        ):
            if names:
                shown = ", ".join(sorted(names)[:3])
                raise BadInput(
                    f"the plan belongs to another search space: it {fault} groups of layers ({shown}). Use a plan of "
                    "the same model and granularity"
                )
        plan = Plan(*zip(*(chosen[name] for name in space.names), strict=True))
        space.encode(plan)
        return plan


def read_plan_file(path: Path) -> dict[str, Any]:
    """What a `plan.json`, or that of the run in a folder, holds; raises BadInput if there is none."""
    file = path / PLAN_NAME if path.is_dir() else path
    with convert_to_bad_input():
        data = read_json(file)
    if not isinstance(data, dict):
        fault = "does not exist" if data is None else "is not a plan"
        raise BadInput(f"{file} {fault}: give the folder of a run, or a plan.json that qra wrote")
    if data.get("format") != PLAN_FORMAT:
        raise BadInput(
            f"{file} has plan format {shorten(data.get('format'))}, but {PLAN_FORMAT!r} is needed: plan again"
        )
    return data


def check_sensitivities(space: SearchSpace, sensitivities: Sensitivities) -> Sensitivities:
    """The sensitivities themselves; raises BadInput if the shapes are not those of the space."""
    want = ((len(space), len(space.bits)), (len(space), len(space.ranks)))
    got = (sensitivities.bits_damage.shape, sensitivities.rank_gain.shape)
    if got != want:
        raise BadInput(
            f"the sensitivities have shapes {got}, but this space needs {want} (groups by bits, groups by ranks): "
            "measure them again"
        )
    return sensitivities


def write_sensitivities(
    file: Path, space: SearchSpace, sensitivities: Sensitivities, evaluator: Mapping[str, Any]
) -> None:
    """Write sensitivities with their space and what `Evaluator.describe` returned."""
    content = {"evaluator": dict(evaluator), "sensitivities": sensitivities.to_dict()}
    write_json(file, {"format": SENSITIVITIES_FORMAT, **content, "space": space.to_dict()}, durable=True)


def read_sensitivities(file: Path) -> tuple[SearchSpace, Sensitivities, dict[str, Any]]:
    """The space, the sensitivities and the description of the evaluator that `write_sensitivities` wrote.

    Raises BadInput if there is no such file, or it is damaged or of another format.
    """
    data = read_json(file)
    if not isinstance(data, dict) or data.get("format") != SENSITIVITIES_FORMAT:
        raise BadInput(
            f"{file} does not hold sensitivities in the format {SENSITIVITIES_FORMAT!r}: plan again in another folder"
        )
    try:
        space = SearchSpace.from_dict(data["space"])
        sensitivities = Sensitivities.from_dict(data["sensitivities"])
        evaluator = dict(data["evaluator"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{file} is damaged ({format_error(error)}): plan again in another folder") from error
    return space, check_sensitivities(space, sensitivities), evaluator
