"""Storage levels: the named ways to store a weight, from which a search chooses."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qra_search.schemas import LevelName, check_name, format_level
from qra_search.space.memory import METADATA_BITS, UNQUANTIZED_BITS, GroupwiseFormat, StorageFormat

Converted = TypeVar("Converted")
BITS_WANTED = "bits are numbers or Levels in a list, such as bits=(2, 3, 4, 8)"


@dataclass(frozen=True)
class Level:
    """One way to store a weight.

    Attributes:
        name: its bits if a width has one level only, else a text such as `nf4`, `gptq-3` or `Q4_K`.
        width: nominal bits, whole or and a half; 16 is the unquantized weight.
        backend: what stores it, in words; only shown.
        format: exact bytes of a weight; default: group-wise with 32 bits of scale and zero for every 64 weights.
    """

    name: LevelName
    width: float
    backend: str = ""
    format: StorageFormat = field(default=None)  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        check_name(self.name)
        if isinstance(self.name, int) and self.name != self.width:
            raise ValueError(
                f"level {self.name} has width {self.width}: the name of a level is its width, or a text"
            )
        if self.width < 1:
            raise ValueError(f"bits must be at least 1, got {self.width}")
        if self.format is None:
            metadata_bits = METADATA_BITS if self.width < UNQUANTIZED_BITS else 0
            object.__setattr__(self, "format", GroupwiseFormat(self.width, metadata_bits=metadata_bits))

    def __str__(self) -> str:
        words = format_level(self.name)
        if words != self.name:
            return words
        return f"{words} ({self.width} bits{f', {self.backend}' if self.backend else ''})"


def read_name(text: str) -> LevelName:
    """The name of a level as written on a command line, where a number stays one; else ValueError."""
    text = text.strip()
    name: LevelName = int(text) if text.isdecimal() and text.isascii() else text
    check_name(name)
    return name


def make_levels(
    bits: Iterable[int | Level], formats: Mapping[int, StorageFormat] | None = None
) -> tuple[Level, ...]:
    """The levels that numbers and levels stand for, by width, then as given; raises TypeError or ValueError if none.

    Args:
        formats: of those given as numbers; None for the default of all.
    """

    def make(value: Any) -> Level:
        if isinstance(value, Level):
            return value
        width = to_int(value)
        if formats is not None and width != UNQUANTIZED_BITS and width not in formats:
            raise ValueError(f"no storage format for {width} bits: formats has {sorted(formats)}")
        return Level(width, width, format=formats.get(width) if formats else None)  # type: ignore[arg-type]

    levels = sorted(convert_all(bits, make, BITS_WANTED), key=lambda level: level.width)
    names = [level.name for level in levels]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"bits must be one or more distinct levels, got {tuple(names)}")
    return tuple(levels)


def convert_all(values: Any, convert: Callable[[Any], Converted], wanted: str) -> tuple[Converted, ...]:
    """Each value converted; raises TypeError, which begins with `wanted`, if one cannot be or `values` is no list."""
    try:
        if isinstance(values, (str, Mapping, Set)):
            raise TypeError
        return tuple(map(convert, values))
    except TypeError:
        raise TypeError(f"{wanted}, got {values!r}") from None


def to_int(value: Any) -> int:
    """A whole number of any type as an int; TypeError for everything else, `True` too."""
    if isinstance(value, bool):
        raise TypeError(value)
    return operator.index(value)
