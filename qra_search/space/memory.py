"""How weights are stored: formats, named levels of them to choose from, and the exact bytes of whole plans."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from pydantic import ByteSize

from qra_search.errors import BadInput
from qra_search.schemas import LevelName, check_level_name, format_level, make_adapter

METADATA_BITS = 32
UNQUANTIZED_BITS = 16
ADAPTER_BITS = 16
"""Of one stored adapter weight (bfloat16)."""


class StorageFormat(Protocol):
    """How a weight matrix is stored at one bit-width."""

    def bytes(self, out_features: int, in_features: int) -> int:
        """Exact bytes of the stored (out_features, in_features) weight, metadata included."""
        ...


@dataclass(frozen=True)
class GroupwiseFormat:
    """`bits` for each weight and `metadata_bits` for each group of `group_size` weights along a row."""

    bits: int
    group_size: int = 64
    metadata_bits: int = METADATA_BITS

    def bytes(self, out_features: int, in_features: int) -> int:
        groups = math.ceil(in_features / self.group_size) if self.metadata_bits else 0
        return math.ceil(
            (out_features * in_features * self.bits + out_features * groups * self.metadata_bits) / 8
        )


@dataclass(frozen=True)
class TabulatedFormat:
    """Bytes of a weight by its shape, as they were counted when a space was recorded."""

    sizes: Mapping[tuple[int, int], int]

    def bytes(self, out_features: int, in_features: int) -> int:
        return self.sizes[out_features, in_features]


class BudgetTooSmall(BadInput):
    """No plan of the space fits the memory budget."""

    def __init__(self, budget: int, minimum: int):
        super().__init__(
            f"memory budget {format_bytes(budget)} ({budget} bytes) is below the smallest plan, "
            f"{format_bytes(minimum)} ({minimum} bytes): raise the budget or allow fewer bits or ranks"
        )


@dataclass(frozen=True)
class MemoryModel:
    """Bytes of plans as a sum over tables.

    Attributes:
        weight: int64 (G, B), bytes of a group's quantized weights at each bit-width.
        adapter: int64 (G, R), bytes of a group's adapters at each rank.
        fixed: bytes that every plan holds.
        allowed: bool (G, B, R), which choices each group may take.
    """

    weight: np.ndarray
    adapter: np.ndarray
    fixed: int
    allowed: np.ndarray

    def bytes(self, codes: np.ndarray) -> np.ndarray:
        """Bytes int64 (...,) of encoded plans (..., 2, G)."""
        rows = np.arange(self.weight.shape[0])
        weight = self.weight[rows, codes[..., 0, :]]
        adapter = self.adapter[rows, codes[..., 1, :]]
        return np.asarray(weight.sum(-1) + adapter.sum(-1) + self.fixed)

    @cached_property
    def choice_bytes(self) -> np.ndarray:
        """int64 (G, B, R): bytes of each choice of each group (`fixed` left out)."""
        return np.asarray(self.weight[:, :, None] + self.adapter[:, None, :])

    @cached_property
    def minimum(self) -> int:
        return int(
            np.where(self.allowed, self.choice_bytes, np.iinfo(np.int64).max).min((1, 2)).sum() + self.fixed
        )

    @cached_property
    def maximum(self) -> int:
        return int(np.where(self.allowed, self.choice_bytes, -1).max((1, 2)).sum() + self.fixed)

    def check_budget(self, budget: int) -> int:
        """The budget itself; raises BudgetTooSmall, which names the least that a plan fits, if none fits."""
        if budget < self.minimum:
            raise BudgetTooSmall(budget, self.minimum)
        return int(budget)


MAX_BYTES = 2**63
"""Sums of bytes are 64-bit integers."""
NUMBER_PATTERN = r"([0-9]{0,18}\.?[0-9]{1,18})"
SIZE_PATTERN = re.compile(rf"\s*{NUMBER_PATTERN}\s*([kmg]?i?b)?\s*", re.IGNORECASE | re.ASCII)


def parse_bytes(text: str | int | float) -> int:
    """Bytes from a number or a text such as `108MiB`, `6 GiB`, `90MB`; raises BadInput if it is no size."""
    match = SIZE_PATTERN.fullmatch(str(text))
    size = int(make_adapter(ByteSize).validate_python(match.group())) if match else 0
    if not 0 < size < MAX_BYTES:
        raise BadInput(f"{text!r} is not a size in bytes: write a number and a unit, such as 108MiB")
    return size


def format_bytes(count: int | float) -> str:
    """A size as people read it: `108.0 MiB`."""
    return ByteSize(count).human_readable(separator=" ")


@dataclass(frozen=True)
class Level:
    """One way to store a weight.

    Attributes:
        name: its bits if a width has one level only, else a text such as `trellis-1.5` or `Q4_K`.
        width: nominal bits, whole or and a half; 16 is the unquantized weight.
        backend: what stores it, in words; only shown.
        format: exact bytes of a weight; default: group-wise with 32 bits of scale and zero for every 64 weights.
    """

    name: LevelName
    width: float
    backend: str = ""
    format: StorageFormat = field(default=None)  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        check_level_name(self.name)
        if isinstance(self.name, int) and self.name != self.width:
            raise ValueError(
                f"storage level {self.name} has width {self.width}: a level whose name is a number must have that width"
            )
        if self.format is None:
            metadata_bits = METADATA_BITS if self.width < UNQUANTIZED_BITS else 0
            object.__setattr__(self, "format", GroupwiseFormat(self.width, metadata_bits=metadata_bits))

    def __str__(self) -> str:
        words = format_level(self.name)
        if words != self.name:
            return words
        return f"{words} ({self.width} bits{f', {self.backend}' if self.backend else ''})"


def make_levels(bits: Iterable[int | Level]) -> tuple[Level, ...]:
    """The levels that numbers and levels stand for, by width, then as given; ValueError if there are none or equal
    ones."""
    levels = [value if isinstance(value, Level) else Level(int(value), int(value)) for value in bits]
    levels.sort(key=lambda level: level.width)
    names = [level.name for level in levels]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"the bits of a space must be one or more distinct levels, got {tuple(names)}")
    return tuple(levels)
