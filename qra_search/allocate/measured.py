"""`sensitivities.json`: sensitivities with the space that they are of and the identity of the evaluator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qra_search.allocate.sensitivities import Sensitivities
from qra_search.errors import BadInput, describe
from qra_search.files import read_json, write_json
from qra_search.space.serialization import space_from_dict, space_to_dict
from qra_search.space.space import SearchSpace

FORMAT = "qra-sensitivities/1"


@dataclass(frozen=True)
class Measured:
    """Sensitivities of a space; `evaluator` is what `Evaluator.describe` said, empty if unknown."""

    space: SearchSpace
    sensitivities: Sensitivities
    evaluator: Mapping[str, Any] = field(default_factory=dict)

    def write(self, file: Path) -> None:
        """Write the file."""
        content = {"evaluator": dict(self.evaluator), "sensitivities": self.sensitivities.to_dict()}
        write_json(file, {"format": FORMAT, **content, "space": space_to_dict(self.space)}, durable=True)


def read_sensitivities(file: Path) -> Measured:
    """What `Measured.write` wrote.

    Raises:
        BadInput: no such file, another format, or sensitivities of another shape than the space.
    """
    data = read_json(file)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BadInput(f"{file} holds no sensitivities of format {FORMAT!r}: plan again in another folder")
    try:
        measured = Measured(
            space_from_dict(data["space"]), Sensitivities.from_dict(data["sensitivities"]), data["evaluator"]
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{file} is damaged ({describe(error)}): plan again in another folder") from error
    measured.sensitivities.check(measured.space)
    return measured


def plain_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluator's identity as it is read back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(identity)))
    return plain
