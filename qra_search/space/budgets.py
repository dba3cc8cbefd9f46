"""Memory budgets as people write them: `108MiB`, `3.5bpw`, `75%` of uniform 4-bit, `uniform3r8`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from qra_search.errors import BadInput, shorten
from qra_search.schemas import LevelName, Plan, format_level, format_level_label
from qra_search.space.memory import NUMBER, SIZE, format_bytes, parse_bytes, read_name
from qra_search.space.space import SearchSpace

REFERENCE_BITS = 4
"""A percentage is of the uniform plan at these bits and the space's middle rank."""
FORMS = "108MiB, 6GiB, 3.5bpw, 75%, uniform3r8"
LEAST_BARE = 1 << 20
"""A number without a unit is of bytes: on a command line one below this is taken for a mistake."""

_PER_WEIGHT = re.compile(rf"\s*{NUMBER}\s*bpw\s*", re.IGNORECASE)
_PERCENT = re.compile(rf"\s*{NUMBER}\s*%\s*")
_UNIFORM = re.compile(
    r"\s*uniform\s*([0-9]+(?:\.5)?|[a-z][\w.-]*?)\s*r\s*([0-9]+)\s*", re.IGNORECASE | re.ASCII
)


def check_budget_text(budget: str | int | float, *, needs_unit: bool = False) -> str:
    """A memory budget as text, checked for its form; `resolve_budget` gives its bytes once the space is known.

    Raises BadInput, which names the forms.
    """
    text = str(budget)
    if any(form.fullmatch(text) for form in (_PER_WEIGHT, _PERCENT, _UNIFORM)):
        return text
    if not isinstance(budget, (int, float)) and not SIZE.fullmatch(text):
        raise BadInput(f"{shorten(budget)} is not a memory budget: write one such as {FORMS}")
    size = parse_bytes(budget)
    if needs_unit and text.strip().isdecimal() and size < LEAST_BARE:
        raise BadInput(
            f"memory budget {text} means {size} bytes: write its unit, such as {text}MiB or {text}GiB"
        )
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
    return space.memory.check_budget(parse_budget(space, budget))


def parse_budget(space: SearchSpace, budget: str | int) -> int:
    """Bytes of a memory budget in a space, whether or not a plan fits; raises BadInput as `resolve_budget` does."""
    text = check_budget_text(budget)
    if match := _PER_WEIGHT.fullmatch(text):
        return space.fixed_bytes + math.floor(float(match.group(1)) * space.weights / 8)
    if match := _PERCENT.fullmatch(text):
        return math.floor(space.memory_bytes(_find_reference(space, text)) * float(match.group(1)) / 100)
    plan = parse_uniform(space, text, what="memory budget")
    return parse_bytes(budget) if plan is None else space.memory_bytes(plan)


def resolve_budgets(space: SearchSpace, budgets: str | int | Sequence[str | int] | None) -> tuple[int, ...]:
    """Bytes of one budget or several, ascending and distinct; empty for None, the whole front."""
    if budgets is None:
        return ()
    several = [budgets] if isinstance(budgets, str) or not isinstance(budgets, Sequence) else budgets
    return tuple(sorted({resolve_budget(space, budget) for budget in several}))


def _find_reference(space: SearchSpace, text: str) -> Plan:
    """The uniform plan that a percentage is of."""
    if not space.uniform_ranks:
        raise BadInput(
            f"memory budget {text!r} is a share of a uniform plan, but this space has none: give it in bytes"
        )
    rank = space.uniform_ranks[len(space.uniform_ranks) // 2]
    names = [level.name for level in space.levels if level.width == REFERENCE_BITS]
    allowed = (
        name for name in names if space.uniform(name, rank) is not None
    )  # not every group may allow each
    return _find_uniform(
        space, next(allowed, next(iter(names), REFERENCE_BITS)), rank, f"memory budget {text!r}"
    )


def parse_uniform(space: SearchSpace, text: str, *, what: str = "plan") -> Plan | None:
    """The uniform plan that a text such as `uniform3r8` names, None if it is no such text; raises BadInput if the space
    has no such plan."""
    match = _UNIFORM.fullmatch(text)
    if match is None:
        return None
    level = match.group(1)
    of_width = (
        known.name for known in space.levels if "." in level and str(known.width) == level
    )  # 2 is a name
    return _find_uniform(
        space, next(of_width, None) or read_name(level), int(match.group(2)), f"{what} {text!r}"
    )


def _find_uniform(space: SearchSpace, bits: LevelName, rank: int, what: str) -> Plan:
    plan = space.uniform(bits, rank)
    if plan is None:
        widths = dict.fromkeys(format_level_label(level) for level, _ in space.uniform_by_choice())
        raise BadInput(
            f"{what} needs the uniform plan of {format_level(bits)} and rank {rank}, which the space does not have. "
            f"Its bits are {', '.join(widths)}, its ranks {', '.join(map(str, space.uniform_ranks))}: choose of these"
        )
    return plan


def describe_size(space: SearchSpace, count: int) -> str:
    """Bytes with what they come to for each searched weight: `108.0 MiB (4.21 bits a weight)`."""
    return f"{format_bytes(count)} ({(count - space.fixed_bytes) * 8 / space.weights:.2f} bits a weight)"
