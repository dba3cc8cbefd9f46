"""Lists of choices as users give them: converted one by one, or refused with what is taken."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, TypeVar

Made = TypeVar("Made")


def converted(values: Any, convert: Callable[[Any], Made], wanted: str) -> tuple[Made, ...]:
    """What `convert` makes of each value.

    Raises:
        TypeError: `values` is no list, or `convert` raised one; the message begins with `wanted`.
    """
    if isinstance(values, (str, bytes, Mapping, Set)) or not isinstance(values, Iterable):
        raise TypeError(f"{wanted}, got {values!r}")
    made = []
    for value in values:
        try:
            made.append(convert(value))
        except TypeError:
            raise TypeError(f"{wanted}, got {value!r} among them") from None
    return tuple(made)


def whole(value: Any) -> int:
    """A whole number of any type as an int; TypeError for everything else, `True` too."""
    if isinstance(value, bool):
        raise TypeError(value)
    return operator.index(value)
