"""Linears, and the groups of them that share a choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from qra_search.space.levels import LevelName, converted


class Linear(BaseModel):
    """One linear map of the model, by its path and shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    out_features: int = Field(gt=0)
    in_features: int = Field(gt=0)

    @property
    def weights(self) -> int:
        """Number of weights."""
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
        """Number of weights of all its linears."""
        return sum(linear.weights for linear in self.linears)


def check_groups(groups: Iterable[Group]) -> tuple[Group, ...]:
    """The groups of a space.

    Raises:
        TypeError, ValueError: there are none, two have one name, or they are something else.
    """
    found = converted(groups, _group, "groups are a list of Group")
    twice = sorted(name for name, count in Counter(group.name for group in found).items() if count > 1)
    if not found:
        raise ValueError("a space needs at least one group")
    if twice:
        raise ValueError(f"group names must be unique, but occur twice: {', '.join(twice)}")
    return found


def _group(value: Any) -> Group:
    if not isinstance(value, Group):
        raise TypeError(value)
    return value
