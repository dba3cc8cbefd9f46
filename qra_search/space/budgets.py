"""Memory budgets as people write them: `108MiB`, `3.5bpw`, `75%` of uniform 4-bit, `uniform3r8`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from qra_search.errors import BadInput, shorten
from qra_search.schemas import Plan, format_level_label
from qra_search.space.memory import NUMBER, SIZE, format_bytes, parse_bytes
from qra_search.space.space import SearchSpace

REFERENCE_BITS = 4
"""A percentage is of the uniform plan at these bits and the space's middle rank."""
FORMS = "108MiB, 6GiB, 3.5bpw, 75%, uniform3r8"

_PER_WEIGHT = re.compile(rf"\s*{NUMBER}\s*bpw\s*", re.IGNORECASE)
_PERCENT = re.compile(rf"\s*{NUMBER}\s*%\s*")
_UNIFORM = re.compile(
    r"\s*uniform\s*([0-9]+(?:\.5)?|[a-z][\w.-]*?)\s*r\s*([0-9]+)\s*", re.IGNORECASE | re.ASCII
)


def check_budget_text(budget: str | int | float) -> str:
    """A memory budget as text, checked for its form; `resolve_budget` gives its bytes once the space is known.

    Raises BadInput, which names the forms.
    """
    text = str(budget)
    if not any(form.fullmatch(text) for form in (SIZE, _PER_WEIGHT, _PERCENT, _UNIFORM)):
        raise BadInput(f"{shorten(budget)} is not a memory budget: write one such as {FORMS}")
    return text


def resolve_budget(space: SearchSpace, budget: str | int) -> int:
    """Bytes of a memory budget in a space.

    `3.5bpw`: bits for every searched weight, for weights, metadata and adapters together, plus the bytes that are not
    searched. `75%`: of the uniform 4-bit plan (in its first level, if there are several) at the space's middle rank.
    `uniform3r8`, `uniform nf4 r8`: what the uniform plan of that level and rank takes.

    Raises:
        BadInput: it has no form of a budget, or the space has no such uniform plan.
        BudgetTooSmall: no plan of the space fits.
    """
    text = check_budget_text(budget)
    if match := _PER_WEIGHT.fullmatch(text):
        size = space.fixed_bytes + math.floor(float(match.group(1)) * space.weights / 8)
    elif match := _PERCENT.fullmatch(text):
        size = math.floor(space.memory_bytes(_find_reference(space)) * float(match.group(1)) / 100)
    elif plan := parse_uniform(space, text):
        size = space.memory_bytes(plan)
    else:
        size = parse_bytes(text)
    return space.memory.check_budget(size)


def resolve_budgets(space: SearchSpace, budgets: str | int | Sequence[str | int] | None) -> tuple[int, ...]:
    """Bytes of one budget or several, ascending and distinct; empty for None, the whole front."""
    if budgets is None:
        return ()
    several = [budgets] if isinstance(budgets, str) or not isinstance(budgets, Sequence) else budgets
    return tuple(sorted({resolve_budget(space, budget) for budget in several}))


def _find_reference(space: SearchSpace) -> Plan:
    ranks = space.uniform_ranks
    for level in space.levels:
        if level.width == REFERENCE_BITS and ranks:
            plan = space.uniform(level.name, ranks[len(ranks) // 2])
            if plan is not None:
                return plan
    raise BadInput(
        "a share of uniform 4-bit is no memory budget of a space without such a plan: give it in bytes"
    )


def parse_uniform(space: SearchSpace, text: str) -> Plan | None:
    """The uniform plan that a text such as `uniform3r8` names, None if it is no such text; raises BadInput if the space
    has no such plan."""
    match = _UNIFORM.fullmatch(text)
    if match is None:
        return None
    plan = space.uniform(match.group(1), int(match.group(2)))
    if plan is None:
        levels = dict.fromkeys(format_level_label(level) for level, _ in space.uniform_by_choice())
        raise BadInput(
            f"the space has no plan {text!r}: its bits are {', '.join(levels)}, its ranks "
            f"{', '.join(map(str, space.uniform_ranks))}"
        )
    return plan


def describe_size(space: SearchSpace, count: int) -> str:
    """Bytes with what they come to for each searched weight: `108.0 MiB (4.21 bits a weight)`."""
    return f"{format_bytes(count)} ({(count - space.fixed_bytes) * 8 / space.weights:.2f} bits a weight)"
