"""How sensitive every group is to its level and rank, measured once before a search; and its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_search.errors import BadInput, describe
from qra_search.files import read_json, write_json
from qra_search.schemas import Sensitivities
from qra_search.space.serialization import space_from_dict, space_to_dict
from qra_search.space.space import SearchSpace

FORMAT = "qra-sensitivities/1"


def check_sensitivities(space: SearchSpace, sensitivities: Sensitivities) -> Sensitivities:
    """The sensitivities themselves; raises BadInput if the shapes are not those of the space."""
    want = ((len(space), len(space.bits)), (len(space), len(space.ranks)))
    got = (sensitivities.bits_damage.shape, sensitivities.rank_gain.shape)
    if got != want:
        raise BadInput(f"sensitivities are {got}, the space needs {want} (groups by bits, groups by ranks)")
    return sensitivities


def write_sensitivities(
    file: Path, space: SearchSpace, sensitivities: Sensitivities, evaluator: Mapping[str, Any]
) -> None:
    """Write sensitivities with their space and what `Evaluator.describe` returned."""
    content = {"evaluator": dict(evaluator), "sensitivities": sensitivities.to_dict()}
    write_json(file, {"format": FORMAT, **content, "space": space_to_dict(space)}, durable=True)


def read_sensitivities(file: Path) -> tuple[SearchSpace, Sensitivities, dict[str, Any]]:
    """The space, the sensitivities and the description of the evaluator that `write_sensitivities` wrote.

    Raises BadInput if there is no such file, or it is damaged or of another format.
    """
    data = read_json(file)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BadInput(f"{file} holds no sensitivities of format {FORMAT!r}: plan again in another folder")
    try:
        space = space_from_dict(data["space"])
        sensitivities = Sensitivities.from_dict(data["sensitivities"])
        evaluator = dict(data["evaluator"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{file} is damaged ({describe(error)}): plan again in another folder") from error
    return space, check_sensitivities(space, sensitivities), evaluator
