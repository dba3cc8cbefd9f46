"""Memory budgets as people write them: `108MiB`, `3.5bpw`, `75%` of uniform 4-bit, `uniform3r8`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qra_search.errors import BadInput, convert_to_bad_input, shorten
from qra_search.schemas import Plan, format_level_label
from qra_search.space.memory import (
    NUMBER_PATTERN,
    SIZE_PATTERN,
    BudgetTooSmall,
    format_bytes,
    parse_bytes,
)
from qra_search.space.space import SearchSpace

REFERENCE_BITS = 4
"""A percentage is of the uniform plan at these bits and the space's middle rank."""
BUDGET_EXAMPLES = "108MiB, 6GiB, 3.5bpw, 75%, uniform3r8"

_PER_WEIGHT = re.compile(rf"\s*{NUMBER_PATTERN}\s*bpw\s*", re.IGNORECASE)
_PERCENT = re.compile(rf"\s*{NUMBER_PATTERN}\s*%\s*")
_UNIFORM = re.compile(
    r"\s*uniform\s*([0-9]+(?:\.5)?|[a-z][\w.-]*?)\s*r\s*([0-9]+)\s*", re.IGNORECASE | re.ASCII
)


@dataclass(frozen=True)
class Budget:
    """A memory budget as it was written; `resolve_budgets` gives its bytes once the space is known.

    Attributes:
        amount: bytes; bits a weight; percent of uniform 4-bit; or the rank of a uniform plan, whose level is `level`.
    """

    text: str | int
    unit: Literal["bytes", "bpw", "%", "uniform"]
    amount: float
    level: str = ""

    def __str__(self) -> str:
        return str(self.text)


GivenBudgets = Budget | str | int | Sequence[Budget | str | int]
"""One budget or several, as text or bytes."""


def parse_budget(given: Budget | str | int) -> Budget:
    """The budget that a text such as `108MiB`, or a number of bytes, stands for; raises BadInput, which names the
    forms."""
    if isinstance(given, Budget):
        return given
    text = str(given)
    if match := _PER_WEIGHT.fullmatch(text):
        return Budget(given, "bpw", float(match.group(1)))
    if match := _PERCENT.fullmatch(text):
        return Budget(given, "%", float(match.group(1)))
    if match := _UNIFORM.fullmatch(text):
        return Budget(given, "uniform", int(match.group(2)), match.group(1))
    if SIZE_PATTERN.fullmatch(text):
        return Budget(given, "bytes", parse_bytes(text))
    raise BadInput(f"{shorten(given)} is not a memory budget: write one such as {BUDGET_EXAMPLES}")


def parse_budgets(given: GivenBudgets) -> tuple[Budget, ...]:
    """One budget or several by `parse_budget`."""
    several = [given] if isinstance(given, Budget | str) or not isinstance(given, Sequence) else given
    return tuple(map(parse_budget, several))


def resolve_budgets(space: SearchSpace, budgets: GivenBudgets) -> tuple[int, ...]:
    """Bytes of one budget or several in a space, ascending and distinct.

    `3.5bpw`: bits for every searched weight, for weights, metadata and adapters together, plus the bytes that are not
    searched. `75%`: of the uniform 4-bit plan (in its first level, if there are several) at the space's middle rank.
    `uniform3r8`, `uniform nf4 r8`: what the uniform plan of that level and rank takes.

    Raises:
        BadInput: one has no form of a budget, or the space has no such uniform plan.
        BudgetTooSmall: no plan of the space fits.
    """
    sizes = set()
    for budget in parse_budgets(budgets):
        size = budget.amount
        if budget.unit == "bpw":
            size = space.fixed_bytes + math.floor(budget.amount * space.weights / 8)
        elif budget.unit == "%":
            size = math.floor(space.memory_bytes(_find_reference(space)) * budget.amount / 100)
        elif budget.unit == "uniform":
            size = space.memory_bytes(_find_uniform(space, budget))
        sizes.add(int(size))
    if sizes and min(sizes) < space.memory.minimum:
        raise BudgetTooSmall(min(sizes), space.memory.minimum)
    return tuple(sorted(sizes))


def _find_reference(space: SearchSpace) -> Plan:
    ranks = space.uniform_ranks
    for level in space.levels:
        if level.width == REFERENCE_BITS and ranks:
            plan = space.uniform(level.name, ranks[len(ranks) // 2])
            if plan is not None:
                return plan
    raise BadInput(
        "a percentage is relative to the uniform 4-bit plan, which this space does not have: give the budget in bytes"
    )


def parse_uniform(space: SearchSpace, text: str) -> Plan | None:
    """The uniform plan that a text such as `uniform3r8` names, None if it is no such text; raises BadInput if the space
    has no such plan."""
    return _find_uniform(space, parse_budget(text)) if _UNIFORM.fullmatch(text) else None


def _find_uniform(space: SearchSpace, budget: Budget) -> Plan:
    with convert_to_bad_input():
        plan = space.uniform(budget.level, int(budget.amount))
    if plan is None:
        levels = dict.fromkeys(format_level_label(level) for level, _ in space.uniform_by_choice())
        raise BadInput(
            f"the space has no plan {str(budget)!r}: its bits are {', '.join(levels)}, its ranks "
            f"{', '.join(map(str, space.uniform_ranks))}"
        )
    return plan


def describe_size(space: SearchSpace, count: int) -> str:
    """Bytes with what they come to for each searched weight: `108.0 MiB (4.21 bits a weight)`."""
    return f"{format_bytes(count)} ({(count - space.fixed_bytes) * 8 / space.weights:.2f} bits a weight)"
