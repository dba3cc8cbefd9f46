"""How sensitive every group is to its level and rank, measured once before a search; and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qra_search.errors import BadInput, describe
from qra_search.files import read_json, write_json
from qra_search.space.serialization import space_from_dict, space_to_dict
from qra_search.space.space import SearchSpace

FORMAT = "qra-sensitivities/1"


@dataclass(frozen=True)
class Sensitivities:
    """Sensitivity of every group, measured once before a search; in nats of loss.

    Attributes:
        bits_damage: float (G, B), rise of the loss when one group is at each bit-width and the rest are not
            quantized. Not negative, falling with bits.
        rank_gain: float (G, R), fall of the loss that an adapter of each rank on one group brings.
        cost: full evaluations that take as long as measuring it did.
        seconds: wall time that measuring it took.
        source: how it was measured.
        repair: how fast rank repairs damage: the share that tuning leaves of it at rank r is (1 + r)^-repair. The
            default fits SmolLM2 tuned on GSM8K at 3 bits with alpha at twice the rank (52%, 36%, 24% and 17% of the
            untuned damage left at ranks 4, 8, 16 and 32); with one alpha for all ranks it is 0.
    """

    bits_damage: np.ndarray
    rank_gain: np.ndarray
    cost: float = 0.0
    seconds: float = 0.0
    source: str = ""
    repair: float = 0.5

    def __post_init__(self) -> None:
        for name in ("bits_damage", "rank_gain"):
            array = np.array(getattr(self, name), dtype=float)
            if array.ndim != 2 or not np.isfinite(array).all():
                raise ValueError(f"{name} must be a finite (groups, choices) array, got shape {array.shape}")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if len(self.bits_damage) != len(self.rank_gain):
            raise ValueError(
                f"bits_damage has {len(self.bits_damage)} groups, rank_gain has {len(self.rank_gain)}"
            )

    def check(self, space: SearchSpace) -> None:
        """Raises BadInput if the shapes are not those of the space, or a figure is no number."""
        want = ((len(space), len(space.bits)), (len(space), len(space.ranks)))
        got = (self.bits_damage.shape, self.rank_gain.shape)
        if got != want:
            raise BadInput(
                f"sensitivities are {got}, the space needs {want} (groups by bits, groups by ranks)"
            )
        if not 0 <= self.cost < np.inf:
            raise BadInput(f"the cost of the sensitivities is {self.cost:g}: a number from 0 on is needed")

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "bits_damage": self.bits_damage.tolist(), "rank_gain": self.rank_gain.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sensitivities:
        return cls(**dict(data))


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
        space, sensitivities = space_from_dict(data["space"]), Sensitivities.from_dict(data["sensitivities"])
        evaluator = dict(data["evaluator"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{file} is damaged ({describe(error)}): plan again in another folder") from error
    sensitivities.check(space)
    return space, sensitivities, evaluator
