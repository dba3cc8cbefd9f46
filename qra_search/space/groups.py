"""Linears, and the groups of them that share a choice."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from qra_search.space.levels import LevelName


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
