"""How plans, sizes, times and findings are put into words; one wording for the terminal and the report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qra_search.memory import format_bytes

if TYPE_CHECKING:
    from qra_search.final import Tested
    from qra_search.result import Candidate, SearchResult
    from qra_search.space import Plan


def plan_name(plan: Plan) -> str:
    """`3 bits, rank 8` of a uniform plan; the averages and how many groups of each bits of a mixed one."""
    if len(set(plan.bits)) == 1 and len(set(plan.ranks)) == 1:
        return f"uniform {plan.bits[0]} bits, rank {plan.ranks[0]}"
    n = len(plan.bits)
    return f"mixed, on average {sum(plan.bits) / n:.2f} bits, rank {sum(plan.ranks) / n:.1f}"


def bits_counts(plan: Plan) -> str:
    """How many groups have each bit-width: `12 at 2 bits, 18 at 3 bits`."""
    return ", ".join(f"{count} at {bits} bits" for bits, count in sorted(Counter(plan.bits).items()))


def loss_text(value: float, std: float = math.nan) -> str:
    """A loss to four figures, with its deviation where one is known."""
    if not math.isfinite(value):
        return "diverged"
    return f"{value:.4g}" if not math.isfinite(std) else f"{value:.4g} ± {std:.2g}"


def pair_text(low: float, high: float) -> tuple[str, str]:
    """Two losses with just enough digits (at least two decimals) to be told apart."""
    for digits in range(2, 7):
        if f"{low:.{digits}f}" != f"{high:.{digits}f}":
            return f"{low:.{digits}f}", f"{high:.{digits}f}"
    return f"{low:.2f}", f"{high:.2f}"


def percent(share: float) -> str:
    """A share as a percentage: `16.4 %`."""
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """A time as people read it: `41 s`, `6 min 12 s`, `2 h 05 min`."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def evaluations_text(count: float) -> str:
    """A number of evaluations, whole where it is whole."""
    return f"{count:.0f}" if abs(count - round(count)) < 0.005 else f"{count:.2f}"


def headline(result: SearchResult, tested: Sequence[Tested] = ()) -> str:
    """One sentence that says what was found, on test data where the final comparison was made."""
    found = next((t for t in tested if t.role == "found"), None)
    rivals = [t for t in tested if t.role != "found" and math.isfinite(t.loss)]
    if found is not None and rivals and math.isfinite(found.loss):
        rival = min(rivals, key=lambda t: t.loss)
        return _sentence(
            "Test loss", found.loss, rival.loss, format_bytes(found.memory_bytes), plan_name(rival.plan),
            _noise(found.loss_error, rival.loss_error),
        )  # fmt: skip
    comparison = result.comparison()
    if comparison is None:
        return "No plan has been evaluated yet." if not result.failures() else "Every evaluation failed."
    best, uniform = comparison.best, comparison.uniform
    size = format_bytes(comparison.budget) if result.memory_budgets else format_bytes(best.memory_bytes)
    if uniform is None:
        return f"Loss {best.loss:.2f} at {size}, where no uniform plan fits."
    noise = _noise(best.loss_std, uniform.loss_std)
    return _sentence("Loss", best.loss, uniform.loss, size, plan_name(uniform.plan), noise)


def comparison_rows(result: SearchResult) -> list[tuple[int, Candidate, Candidate | None]]:
    """For every budget (every plan of the front where none was named): budget, best plan, best uniform plan."""
    budgets = result.memory_budgets or tuple(c.memory_bytes for c in result.front)
    return [(c.budget, c.best, c.uniform) for b in budgets if (c := result.comparison(b)) is not None]


def model_and_task(identity: dict[str, Any]) -> tuple[str, str]:
    """Names of the model and of the task, from what a log says of its evaluator; empty where it says nothing."""

    def name(key: str) -> str:
        value = identity.get(key)
        if isinstance(value, dict):
            value = value.get("name") or value.get("spec")
        return str(value) if isinstance(value, (str, int)) else ""

    return name("model"), name("task")


def _sentence(what: str, found: float, rival: float, size: str, rival_name: str, noise: float) -> str:
    if found >= rival:
        return f"No plan found within {size} beats {rival_name} (loss {rival:.3f})."
    low, high = pair_text(found, rival)
    doubt = ""
    if math.isfinite(noise) and rival - found < 2 * noise:
        doubt = ", a difference within the noise"
    return f"{what} {low} instead of {high} ({rival_name}) at the same {size}{doubt}."


def _noise(first: float, second: float) -> float:
    return math.hypot(first, second)
