"""The number that a worked answer ends in, found as lm-evaluation-harness finds it."""

from __future__ import annotations

import re
from typing import Literal

STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


def number_of(text: str, how: Literal["strict", "flexible"] = "strict") -> str | None:
    """The answer's number without commas, dollar signs and a final point; None if there is none.

    strict: the first number after `####`. flexible: the last thing that looks like a number.
    """
    if how == "strict":
        found = STRICT.findall(text)
        return _plain(found[0]) if found else None
    matches = FLEXIBLE.findall(text)
    return _plain(next(part for part in matches[-1] if part)) if matches else None


def _plain(number: str) -> str:
    return number.replace(",", "").replace("$", "").removesuffix(".")
