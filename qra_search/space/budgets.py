"""Memory budgets as people write them: `108MiB`, `3.5bpw`, `75%` of uniform 4-bit, `uniform3r8`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from qra_search.errors import BadInput
from qra_search.space.levels import LevelName, level_words, read_name
from qra_search.space.memory import format_bytes, parse_bytes
from qra_search.space.space import Plan, SearchSpace

REFERENCE_BITS = 4
"""A percentage is of the uniform plan at these bits and the space's middle rank."""
FORMS = "108MiB, 6GiB, 3.5bpw, 75%, uniform3r8"

_NUMBER = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_PER_WEIGHT = re.compile(rf"\s*{_NUMBER}\s*bpw\s*", re.IGNORECASE)
_PERCENT = re.compile(rf"\s*{_NUMBER}\s*%\s*")
_UNIFORM = re.compile(r"\s*uniform\s*([0-9]+|[a-z][\w.-]*?)\s*r\s*([0-9]+)\s*", re.IGNORECASE | re.ASCII)


def check_size(text: str | int | float) -> str:
    """The text itself, if it has one of the forms of a memory budget.

    Raises:
        BadInput: it has none; the message names the forms.
    """
    if any(form.fullmatch(str(text)) for form in (_PER_WEIGHT, _PERCENT, _UNIFORM)):
        return str(text)
    try:
        parse_bytes(text)
    except ValueError as error:
        if "positive" in str(error):
            raise
        raise BadInput(f"{text!r} is not a memory budget: write one such as {FORMS}") from None
    return str(text)


def size_in(space: SearchSpace, text: str | int | float) -> int:
    """Bytes that a budget means for a space.

    `3.5bpw`: so many bits for every searched weight, for weights, metadata and adapters together, plus the
    bytes that are not searched. `75%`: of the uniform 4-bit plan (in its first level, if there are several) at the
    space's middle rank. `uniform3r8`, `uniform nf4 r8`: what the uniform plan of that level and rank takes.

    Raises:
        BadInput: no such form, or the space has no such uniform plan.
    """
    if isinstance(text, (int, float)):
        return parse_bytes(text)
    text = check_size(text)
    if match := _PER_WEIGHT.fullmatch(text):
        return space.fixed_bytes + math.floor(float(match.group(1)) * space.weights / 8)
    if match := _PERCENT.fullmatch(text):
        if not space.uniform_ranks:
            raise BadInput(f"memory budget {text!r} is of a uniform plan, and no rank is allowed for all: give bytes")
        rank = space.uniform_ranks[len(space.uniform_ranks) // 2]
        names = [level.name for level in space.levels if level.width == REFERENCE_BITS]
        whole = (name for name in names if space.uniform(name, rank) is not None)  # not every group may allow each
        reference = _uniform_bytes(space, next(whole, next(iter(names), REFERENCE_BITS)), rank, text)
        return math.floor(reference * float(match.group(1)) / 100)
    if match := _UNIFORM.fullmatch(text):
        return _uniform_bytes(space, read_name(match.group(1)), int(match.group(2)), text)
    return parse_bytes(text)


def uniform_in(space: SearchSpace, text: str) -> Plan | None:
    """The uniform plan that a text such as `uniform3r8` names; None if it is no such text.

    Raises:
        BadInput: the space has no such plan.
    """
    match = _UNIFORM.fullmatch(text)
    return None if match is None else _uniform(space, read_name(match.group(1)), int(match.group(2)), f"plan {text!r}")


def uniform_text(space: SearchSpace, plan: Plan) -> str:
    """The text that names a uniform plan, such as `uniform3r8`.

    Raises:
        ValueError: the plan is none.
    """
    choice = space.uniform_choice(plan)
    if choice is None:
        raise ValueError("the plan is not uniform, so no text names it")
    return f"uniform{choice[0]}r{choice[1]}"


def budget_in(space: SearchSpace, text: str | int | float) -> int:
    """Bytes that a budget means for a space, which some plan of it fits.

    Raises:
        BadInput: as `size_in`.
        BudgetTooSmall: no plan fits.
    """
    return space.memory.check_budget(size_in(space, text))


def resolve_budgets(space: SearchSpace, budget: int | str | Sequence[int | str] | None) -> tuple[int, ...]:
    """Budgets in bytes, ascending and distinct; empty if the whole front is wanted.

    Raises:
        BadInput, BudgetTooSmall: as `budget_in`.
    """
    if budget is None:
        return ()
    several = [budget] if isinstance(budget, str) or not isinstance(budget, Sequence) else budget
    return tuple(sorted({budget_in(space, b) for b in several}))


def describe_size(space: SearchSpace, count: int) -> str:
    """Bytes with what they come to for each searched weight: `108.0 MiB (4.21 bits a weight)`."""
    return f"{format_bytes(count)} ({bits_per_weight(space, count):.2f} bits a weight)"


def bits_per_weight(space: SearchSpace, count: int) -> float:
    """Bits that so many bytes of a plan come to for each searched weight."""
    return (count - space.fixed_bytes) * 8 / space.weights


def _uniform_bytes(space: SearchSpace, bits: LevelName, rank: int, text: str) -> int:
    return space.memory_bytes(_uniform(space, bits, rank, f"memory budget {text!r}"))


def _uniform(space: SearchSpace, bits: LevelName, rank: int, what: str) -> Plan:
    plan = space.uniform(bits, rank)
    if plan is None:
        raise BadInput(
            f"{what} needs the uniform plan of {level_words(bits)} and rank {rank}, which the space "
            "does not have: "
            f"its bits are {', '.join(map(str, space.bits))}, its ranks {', '.join(map(str, space.uniform_ranks))}"
        )
    return plan
