"""Linears, the groups of them that share a choice, and a plan: one choice of storage and rank for every group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from qra_search.space.levels import LevelName, check_name, convert_all, format_level, to_int, to_level_name

LENGTH = "length"
"""Name of the parameter that is a share of a full evaluation's steps."""


class Linear(BaseModel):
    """One linear map of the model, by its path and shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    out_features: int = Field(gt=0)
    in_features: int = Field(gt=0)

    @property
    def weights(self) -> int:
        return self.out_features * self.in_features


class Group(BaseModel):
    """Linears that share one choice of bits and rank.

    `bits` (names of levels) and `ranks` narrow the space's choices for this group; None allows all of them.
    A group that `is_embedding` follows uniform plans as far as it can: it takes their level, or the next wider that it
    allows, and its own lowest rank.
    `kind` names what such groups have in common across layers (`v_proj`, `layer`), and `depth` is the
    index of the decoder layer: both only inform models of the loss, and may be left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    linears: tuple[Linear, ...] = Field(min_length=1)
    bits: tuple[LevelName, ...] | None = None
    ranks: tuple[int, ...] | None = None
    kind: str = ""
    depth: int | None = None
    is_embedding: bool = False

    @property
    def weights(self) -> int:
        return sum(linear.weights for linear in self.linears)


class Parameter(BaseModel):
    """What a search may choose beside bits and ranks, for the whole plan.

    Attributes:
        values: numbers to choose from, ascending, above 0.
        default: one of them, which uniform plans and plans of sensitivities have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: tuple[PositiveFloat, ...] = Field(min_length=1)
    default: float

    @model_validator(mode="after")
    def _check(self) -> Parameter:
        if list(self.values) != sorted(set(self.values)) or self.default not in self.values:
            raise ValueError(
                f"values must be distinct and ascending, with the default among them: got {self.values} and "
                f"{self.default}"
            )
        return self


@dataclass(frozen=True)
class Plan:
    """One choice for every group, in the order of the space's groups.

    Attributes:
        bits: names of storage levels, such as `(2, "nf4", 3)`.
        ranks: of the adapters; 0 is none.
        extra: names and values of what else a space lets search (`SearchSpace.extra`), such as
            `(("learning_rate", 0.004),)`; what is not named is as the evaluator has it.

    Raises:
        TypeError: a choice is of another kind.
        ValueError: bits and ranks differ in number, or there are none.
    """

    bits: tuple[LevelName, ...]
    ranks: tuple[int, ...]
    extra: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for side, kinds, convert, wanted in (
            ("bits", {int, str}, to_level_name, "a plan's bits are a list of numbers or names of levels"),
            ("ranks", {int}, to_int, "a plan's ranks are a list of numbers"),
        ):
            values = getattr(self, side)
            if type(values) is not tuple or not set(map(type, values)) <= kinds:
                object.__setattr__(self, side, convert_all(values, convert, wanted))
        for level in {b for b in self.bits if isinstance(b, str)}:
            check_name(level)
        if not self.bits or len(self.bits) != len(self.ranks):
            raise ValueError(
                f"a plan needs one rank for each choice of bits, and at least one of both: got {len(self.bits)} bits, "
                f"{len(self.ranks)} ranks"
            )

    @cached_property
    def key(self) -> str:
        """A short text that is equal for equal plans."""
        # Kept: a search asks for the keys of all its trials before every proposal.
        key = ",".join(map(str, self.bits)) + "|" + ",".join(map(str, self.ranks))
        return "|".join([key, *(f"{name}={value:g}" for name, value in self.extra)])

    @property
    def length(self) -> float:
        """Share of a full evaluation's steps that the plan asks for; evaluating it is charged so much."""
        return dict(self.extra).get(LENGTH, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: `bits`, `ranks` and, if there is any, `extra`."""
        extra = {"extra": [list(pair) for pair in self.extra]} if self.extra else {}
        return {"bits": list(self.bits), "ranks": list(self.ranks), **extra}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The plan of what `to_dict` gave; other keys do not count."""
        extra = tuple((str(name), float(value)) for name, value in data.get("extra", ()))
        return cls(tuple(data["bits"]), tuple(data["ranks"]), extra)

    def __str__(self) -> str:
        counts = Counter(self.bits)
        order = sorted(counts, key=lambda name: (isinstance(name, str), name))
        shares = ", ".join(f"{counts[name]} at {format_level(name)}" for name in order)
        return f"Plan({len(self.bits)} groups: {shares}; mean rank {sum(self.ranks) / len(self.ranks):.1f})"
