"""What is searched: linears, the groups that share a choice, and the plans made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from qra_search.display import Displayed
from qra_search.space.memory import (
    MemoryModel,
    StorageFormat,
    adapter_bytes,
    default_format,
    format_bytes,
    level_name,
    level_width,
)

DEFAULT_BITS = (2, 3, 4, 8)
DEFAULT_RANKS = (4, 8, 16, 32)
_NUMBERS = {str(number): number for number in range(10_000)}
"""Numbers as keys of plans write them: a look-up is faster than parsing, and logs hold millions."""
_SHAPES = bytes.maketrans(b"0123456789", b"zddddddddd")


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

    `bits` and `ranks` narrow the space's choices for this group; None allows all of them.
    `kind` names what such groups have in common across layers (`v_proj`, `layer`), and `depth` is the
    index of the decoder layer: both only inform models of the loss, and may be left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    linears: tuple[Linear, ...] = Field(min_length=1)
    bits: tuple[int, ...] | None = None
    ranks: tuple[int, ...] | None = None
    kind: str = ""
    depth: int | None = None

    @property
    def weights(self) -> int:
        """Number of weights of all its linears."""
        return sum(linear.weights for linear in self.linears)


@dataclass(frozen=True)
class Plan(Displayed):
    """One choice for every group, in the order of the space's groups."""

    __slots__ = ("_key", "_levels", "bits", "ranks")

    bits: tuple[int, ...]
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("bits", "ranks"):
            values = getattr(self, name)
            if type(values) is not tuple or set(map(type, values)) != {int}:
                object.__setattr__(self, name, tuple(int(v) for v in values))
        if len(self.bits) != len(self.ranks):
            raise ValueError(
                f"a plan needs one rank for each bit-width: got {len(self.bits)} bits, {len(self.ranks)} ranks"
            )

    def __reduce__(self) -> tuple[type[Plan], tuple[tuple[int, ...], tuple[int, ...]]]:
        return Plan, (self.bits, self.ranks)

    @property
    def key(self) -> str:
        """A short text that is equal for equal plans."""
        # Kept: a search asks for the keys of all its trials before every proposal.
        try:
            known: str = self._key
            return known
        except AttributeError:
            key = ",".join(map(str, self.bits)) + "|" + ",".join(map(str, self.ranks))
            object.__setattr__(self, "_key", key)
            return key

    @classmethod
    def from_key(cls, key: str) -> Plan:
        """The plan with this `key`.

        Raises:
            ValueError: there is none.
        """
        if not _is_key(key):
            first, _, second = key.partition("|")
            return cls(tuple(map(int, first.split(","))), tuple(map(int, second.split(","))))
        plan = object.__new__(cls)
        object.__setattr__(plan, "_key", key)
        return plan

    def __getattr__(self, name: str) -> Any:
        # Of a plan made from its key the numbers are parsed when they are first asked for: a log of 10,000 plans
        # of 560 groups opens three times as fast.
        if name not in ("bits", "ranks"):
            raise AttributeError(name)
        for field, part in zip(("bits", "ranks"), self._key.split("|"), strict=True):
            object.__setattr__(self, field, tuple(map(_NUMBERS.__getitem__, part.split(","))))
        return object.__getattribute__(self, name)

    def __str__(self) -> str:
        mean_bits, mean_rank = sum(map(level_width, self.bits)) / len(self.bits), sum(self.ranks) / len(self.ranks)
        return f"Plan({len(self.bits)} groups, mean bits {mean_bits:.2f}, mean rank {mean_rank:.1f})"


def _is_key(text: str) -> bool:
    """Whether a text is as `Plan.key` writes it, all numbers below 10,000."""
    shape = text.encode("utf-8", "replace").translate(_SHAPES)
    parted = b"," + shape.replace(b"|", b",|,") + b","
    middle = shape.find(b"|")
    return (
        shape.translate(None, b"dz,") == b"|"
        and shape.count(b",", 0, middle) == shape.count(b",", middle)
        and not any(bad in parted for bad in (b",,", b",zz", b",zd"))
        and b"ddddd" not in shape.replace(b"z", b"d")
    )


class SearchSpace(Displayed, BaseModel):
    """The groups with their allowed bits and ranks, and the storage format of each bit-width.

    Args:
        groups: at least one, with unique names.
        bits: bit-widths to choose from; 16 leaves a linear unquantized. A further way to store a width is a choice of
            its own: 104 is a second one of 4 bits (see `memory.LEVEL_STEP`). Kept by width.
        ranks: LoRA ranks to choose from; 0 means no adapter.
        formats: bit-width to its `StorageFormat`; default: group-wise with 32 bits of scale and zero
            for every 64 weights.
        backends: what stores each of `bits`, in words, where that is a choice; only shown.
        fixed_bytes: bytes of everything that is not searched (embeddings, norms, head).
        adapter_bits: bits of one stored adapter weight (bf16).

    Level arrays: a plan is coded as two integer arrays of shape (G,), the indices of its choices in
    `bits` and `ranks`. `encode` and `decode` are the only way between the two.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    groups: tuple[Group, ...] = Field(min_length=1)
    bits: tuple[int, ...] = DEFAULT_BITS
    ranks: tuple[int, ...] = DEFAULT_RANKS
    formats: Mapping[int, Any] | None = None
    backends: Mapping[int, str] = Field(default_factory=dict)
    fixed_bytes: int = Field(default=0, ge=0)
    adapter_bits: int = Field(default=16, gt=0)

    @field_validator("bits", "ranks")
    @classmethod
    def _ascending(cls, values: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if not values:
            raise ValueError("at least one choice is needed")
        if any(v < 0 for v in values) or len(set(values)) != len(values):
            raise ValueError(f"choices must be distinct and not negative, got {values}")
        return tuple(sorted(values, key=lambda v: (level_width(v), v) if info.field_name == "bits" else (v, v)))

    @model_validator(mode="after")
    def _consistent(self) -> SearchSpace:
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"group names must be unique, but occur twice: {', '.join(twice)}")
        if any(level_width(b) < 1 for b in self.bits):
            raise ValueError(f"bits must be at least 1, got {self.bits}")
        for group in self.groups:
            for what, own, all_ in (("bits", group.bits, self.bits), ("ranks", group.ranks, self.ranks)):
                if own is not None and (not own or not set(own) <= set(all_)):
                    raise ValueError(f"group {group.name!r}: {what} must be chosen from {all_}, got {own}")
        for b in self.bits:
            if self.formats is not None and b != 16 and b not in self.formats:
                raise ValueError(f"no storage format for {b} bits: formats has {sorted(self.formats)}")
        return self

    # -- how it shows itself -----------------------------------------------------------------------
    def __repr__(self) -> str:
        bits, ranks = ", ".join(map(level_name, self.bits)), ", ".join(map(str, self.ranks))
        sizes = f"{format_bytes(self.memory.minimum)} to {format_bytes(self.memory.maximum)}"
        return f"SearchSpace({len(self)} groups, bits {bits}, ranks {ranks}, {sizes})"

    __str__ = __repr__

    # -- sizes ---------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the groups, in order."""
        return tuple(group.name for group in self.groups)

    @cached_property
    def bits_allowed(self) -> np.ndarray:
        """bool (G, B): which of `bits` each group may take."""
        return np.array([[g.bits is None or b in g.bits for b in self.bits] for g in self.groups])

    @cached_property
    def ranks_allowed(self) -> np.ndarray:
        """bool (G, R): which of `ranks` each group may take."""
        return np.array([[g.ranks is None or r in g.ranks for r in self.ranks] for g in self.groups])

    @cached_property
    def widths(self) -> np.ndarray:
        """int (B,): the bits of each of `bits`, which are more than its widths where the backend is searched."""
        return np.array([level_width(b) for b in self.bits])

    def bits_text(self, level: int) -> str:
        """One of `bits` in words: `4 bits`, or `4b bits (hqq)`."""
        backend = self.backends.get(level)
        return f"{level_name(level)} bits" + (f" ({backend})" if backend else "")

    def format(self, bits: int) -> StorageFormat:
        """The storage format of a bit-width of this space."""
        return self.formats[bits] if self.formats and bits in self.formats else default_format(bits)

    # -- memory --------------------------------------------------------------------------------
    @cached_property
    def memory(self) -> MemoryModel:
        """Exact bytes of any plan, as tables."""
        weight = [
            [sum(self.format(b).bytes(m.out_features, m.in_features) for m in g.linears) for b in self.bits]
            for g in self.groups
        ]
        adapter = [
            [
                sum(adapter_bytes(m.out_features, m.in_features, r, self.adapter_bits) for m in g.linears)
                for r in self.ranks
            ]
            for g in self.groups
        ]
        return MemoryModel(
            np.asarray(weight, dtype=np.int64),
            np.asarray(adapter, dtype=np.int64),
            self.fixed_bytes,
            self.bits_allowed,
            self.ranks_allowed,
        )

    def memory_bytes(self, plan: Plan) -> int:
        """Exact resident bytes of a plan: quantized weights with metadata, adapters, and `fixed_bytes`."""
        return int(self.memory.bytes(*self.encode(plan)))

    # -- codec ---------------------------------------------------------------------------------
    def encode(self, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
        """Level indices (G,), (G,) of a plan's bits and ranks.

        Raises:
            ValueError: the plan is not of this space; the message names the group.
        """
        levels = self._levels(plan)
        return levels[0].astype(np.int64), levels[1].astype(np.int64)

    def _levels(self, plan: Plan) -> np.ndarray:
        """Both rows of level indices, int16 (2, G)."""
        # Kept, as the key is: a strategy with a model encodes all trials before every proposal.
        known: tuple[SearchSpace, np.ndarray] | None = getattr(plan, "_levels", None)
        if known is not None and known[0] is self:
            return known[1]
        levels = np.array(self._encoded(plan), dtype=np.int16)
        levels.setflags(write=False)
        object.__setattr__(plan, "_levels", (self, levels))
        return levels

    def _encoded(self, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
        if len(plan.bits) != len(self.groups):
            raise ValueError(f"the plan has {len(plan.bits)} groups, the space has {len(self.groups)}")
        b_index, r_index = self._level_of_bits, self._level_of_rank
        try:
            b = np.array([b_index[x] for x in plan.bits], dtype=np.int64)
            r = np.array([r_index[x] for x in plan.ranks], dtype=np.int64)
        except KeyError:
            raise ValueError(self._why_not(plan)) from None
        rows = np.arange(len(b))
        if not (self.bits_allowed[rows, b].all() and self.ranks_allowed[rows, r].all()):
            raise ValueError(self._why_not(plan))
        return b, r

    def decode(self, b: Sequence[int] | np.ndarray, r: Sequence[int] | np.ndarray) -> Plan:
        """The plan with these level indices, each (G,)."""
        return Plan(tuple(self.bits[int(i)] for i in b), tuple(self.ranks[int(i)] for i in r))

    def encode_many(self, plans: Iterable[Plan]) -> tuple[np.ndarray, np.ndarray]:
        """Level indices (N, G), (N, G) of several plans."""
        levels = [self._levels(plan) for plan in plans]
        b, r = np.array(levels, dtype=np.int64).reshape(len(levels), 2, len(self)).transpose(1, 0, 2)
        return np.ascontiguousarray(b), np.ascontiguousarray(r)

    def contains(self, plan: Plan) -> bool:
        """Whether every choice of the plan is allowed."""
        return len(plan.bits) == len(self.groups) and not self._why_not(plan)

    def uniform(self, bits: int, rank: int) -> Plan | None:
        """The plan with one choice for every group; None where some group does not allow it."""
        plan = Plan((bits,) * len(self), (rank,) * len(self))
        return plan if self.contains(plan) else None

    def uniform_plans(self) -> list[Plan]:
        """Every uniform plan of the space, cheapest first."""
        plans = [p for b in self.bits for r in self.ranks if (p := self.uniform(b, r)) is not None]
        return sorted(plans, key=self.memory_bytes)

    @cached_property
    def signature(self) -> str:
        """Hash of all that makes two spaces the same: groups, choices and bytes of every choice."""
        content = {
            "groups": [(g.name, [(m.name, m.out_features, m.in_features) for m in g.linears]) for g in self.groups],
            "bits": self.bits,
            "ranks": self.ranks,
            "bits_allowed": self.bits_allowed.tolist(),
            "ranks_allowed": self.ranks_allowed.tolist(),
            "weight": self.memory.weight.tolist(),
            "adapter": self.memory.adapter.tolist(),
            "fixed": self.fixed_bytes,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def _level_of_bits(self) -> dict[int, int]:
        return {b: i for i, b in enumerate(self.bits)}

    @cached_property
    def _level_of_rank(self) -> dict[int, int]:
        return {r: i for i, r in enumerate(self.ranks)}

    def _why_not(self, plan: Plan) -> str:
        for group, b, r in zip(self.groups, plan.bits, plan.ranks, strict=True):
            for what, value, allowed in (
                ("bits", b, group.bits or self.bits),
                ("rank", r, group.ranks or self.ranks),
            ):
                if value not in allowed:
                    return f"group {group.name!r}: {what} {value} is not one of {allowed}"
        return ""
