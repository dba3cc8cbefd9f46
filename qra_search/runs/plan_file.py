"""A `plan.json` read back, for a space or as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qra_search.errors import BadInput, bad_input, shortened
from qra_search.files import read_json
from qra_search.space.serialization import PLAN_FORMAT, plan_from_dict
from qra_search.space.space import Plan, SearchSpace

PLAN_NAME = "plan.json"


def read_plan(space: SearchSpace, path: Path) -> Plan:
    """The plan of a `plan.json`, or of the run in a folder, for a space.

    Raises:
        BadInput: no such file, no plan, or one of another space.
    """
    with bad_input():
        return plan_from_dict(space, plan_data(path))


def plan_data(path: Path) -> dict[str, Any]:
    """What a `plan.json`, or that of the run in a folder, holds.

    Raises:
        BadInput: no such file, or no plan in it.
    """
    file = path / PLAN_NAME if path.is_dir() else path
    with bad_input():
        data = read_json(file)
    if not isinstance(data, dict):
        raise BadInput(f"{file} {'does not exist' if data is None else 'is no plan'}: give a plan.json or a run")
    if data.get("format") != PLAN_FORMAT:
        raise BadInput(f"{file} is no plan: plan format is {shortened(data.get('format'))}, {PLAN_FORMAT!r} is needed")
    return data
