"""Reads a search back from its trial log alone: the space with its exact bytes, and the state of the study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qra_search.evaluation import Prior
from qra_search.space import Group, Linear, SearchSpace
from qra_search.strategies.base import StudyState
from qra_search.trials import LogMismatch, TrialLog

SPACE = "space_data"
STUDY = "study"


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


def record(log: TrialLog, space: SearchSpace, **study: Any) -> None:
    """Write the space and what the study was asked for into the header of a log."""
    if log.meta(SPACE) is None:
        log.set_meta(SPACE, space_to_dict(space))
    log.set_meta(STUDY, study)


def recorded_space(log: TrialLog) -> SearchSpace:
    """The space of a log.

    Raises:
        LogMismatch: the log holds none.
    """
    data = log.meta(SPACE)
    if data is None:
        raise LogMismatch(f"{log.path} holds no search space: no search has begun in it")
    return space_from_dict(data)


def recorded_state(log: TrialLog) -> StudyState:
    """The state of the study that wrote a log, without its evaluator.

    Raises:
        LogMismatch: no search has begun in the log.
    """
    space = recorded_space(log)
    prior = log.meta("prior")
    return StudyState(
        space,
        log.trials,
        Prior.from_dict(prior) if prior else None,
        tuple(log.meta("budgets") or ()),
        int(log.meta("seed") or 0),
        float((log.meta(STUDY) or {}).get("evaluations", 100.0)),
    )
