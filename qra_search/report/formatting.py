"""How plans, sizes, times and findings are put into words; one wording for the terminal and the report."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from qra_search.runs.comparison import SIXTEEN, UNTUNED, TestResult, difference
from qra_search.space.levels import level_words
from qra_search.study.candidates import lower_by

if TYPE_CHECKING:
    from qra_search.space.space import Plan, SearchSpace


FAILURES = ("diverged", "out of memory")
"""What a failed tuning's reason begins with if there is a word for it."""
Z = 1.96
"""Standard errors on either side that hold 95%."""
SHARES = ("accuracy", "accuracy_norm", "accuracy_bytes", "exact_match", "flexible_match")
"""Figures of tasks that are shares of rows."""
_UNIT = re.compile(r"(?<=\d) (?=(?:%|[KMG]iB|bits|ms|s|min|h)(?!\w))|(?<=\brank) (?=\d)")


def plan_name(plan: Plan, space: SearchSpace) -> str:
    """`uniform 3 bits, rank 8`, or `mixed, 2.91 bits, rank 11.4` with the averages over the groups; and the level of
    the embeddings if it is searched, and not that of everything else."""
    tables = dict.fromkeys(b for g, b in zip(space.groups, plan.bits, strict=True) if g.is_embedding)
    choice = space.uniform_choice(plan)
    apart = bool(tables) and (choice is None or set(tables) != {choice[0]})
    rest = f", embeddings {' and '.join(map(level_words, tables))}" if apart else ""
    if choice is not None:
        return f"uniform {level_words(choice[0])}, rank {choice[1]}{rest}"
    return f"mixed, {space.mean_bits(plan):.2f} bits, rank {space.mean_rank(plan):.1f}{rest}"


def tested_name(tested: TestResult, space: SearchSpace) -> str:
    """A plan of a comparison on test data, or what stands beside it: the untuned model, and 16-bit LoRA."""
    if tested.role == UNTUNED:
        return "untuned, 16 bits"
    if tested.role == SIXTEEN:
        return f"16-bit LoRA, rank {max(tested.plan.ranks)}"
    return plan_name(tested.plan, space)


def bits_counts(plan: Plan, space: SearchSpace) -> str:
    """How many groups have each level: `12 at 2 bits, 18 at nf4`."""
    counts = Counter(plan.bits)
    return ", ".join(f"{counts[name]} at {level_words(name)}" for name in space.bits if counts[name])


def loss_text(value: float, std: float = math.nan) -> str:
    """A loss to four figures, with its deviation where one is known."""
    if not math.isfinite(value):
        return "diverged"
    text = f"{value:#.4g}".rstrip(".")
    return text if not math.isfinite(std) else f"{text} ± {std:.2g}"


def test_loss_text(tested: TestResult) -> str:
    """The test loss of a tuned plan; or `diverged`, `out of memory` or `failed`."""
    if not tested.failed:
        return loss_text(tested.loss, tested.loss_error)
    what, colon, _ = tested.failed.partition(":")
    return what if colon and what in FAILURES else "failed"


def pair_text(low: float, high: float) -> tuple[str, str]:
    """Two losses with just enough digits (at least two decimals) to be told apart."""
    for digits in range(2, 7):
        if f"{low:.{digits}f}" != f"{high:.{digits}f}":
            return f"{low:.{digits}f}", f"{high:.{digits}f}"
    return f"{low:.2f}", f"{high:.2f}"


def lower_text(found: TestResult, other: TestResult) -> str:
    """How much lower a test loss is as a share of the other, with its interval at 95%; `chance` if that holds zero."""
    if not (math.isfinite(found.loss) and math.isfinite(other.loss) and other.loss):
        return ""
    share, interval = percent(lower_by(found.loss, other.loss)), difference(found, other)
    if interval is None:
        return f"{share}, no interval"
    low, high = (signed_percent(-end / abs(other.loss)).removesuffix(" %") for end in reversed(interval))
    return f"{share} ({low} to {high}{', chance' if interval[0] <= 0 <= interval[1] else ''})"


def metric_text(tested: TestResult, name: str) -> str:
    """A figure of a tuned plan: a share of rows in percent with its interval, anything else as a number."""
    value = tested.metrics[name]
    if name not in SHARES or not 0 <= value <= 1:
        return f"{value:.4g}"
    if not tested.scored:
        return percent(value)
    low, high = share_interval(value, tested.scored)
    return f"{percent(value)} ({100 * low:.0f} to {100 * high:.0f})"


def share_interval(share: float, rows: int) -> tuple[float, float]:
    """Interval at 95% of a share of independent rows (Wilson 1927), which holds near 0 and 1 as well.

    >>> tuple(round(x, 3) for x in share_interval(0.5, 64))
    (0.381, 0.619)
    >>> tuple(round(x, 3) for x in share_interval(0.0, 20))
    (0.0, 0.161)
    """
    wide = 1 + Z * Z / rows
    middle = (share + Z * Z / (2 * rows)) / wide
    half = Z / wide * math.sqrt(share * (1 - share) / rows + Z * Z / (4 * rows * rows))
    return max(0.0, middle - half), min(1.0, middle + half)


def percent(share: float) -> str:
    """A share as a percentage: `16.4 %`, `−0.3 %`."""
    return f"{100 * share:.1f} %".replace("-", "\N{MINUS SIGN}")


def gain_text(gain: float, doubtful: bool) -> str:
    """How much lower a loss is as a share of a rival's; `none` if it is not, and no number where that is zero."""
    if not gain > 0:
        return "none" if math.isfinite(gain) else "\N{EN DASH}"
    return percent(gain) + (", chance" if doubtful else "")


def signed_percent(share: float) -> str:
    """A share as a percentage with its sign: `+16.4 %`, `−0.3 %`."""
    text = f"{100 * share:+.1f} %"
    return text.replace("-", "\N{MINUS SIGN}")


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
    return f"{count:.2f}".rstrip("0").rstrip(".")


def unbroken(text: object) -> str:
    """A text in which no line ends between a figure and its unit."""
    return _UNIT.sub("\N{NO-BREAK SPACE}", str(text))


def model_and_task(identity: dict[str, Any]) -> tuple[str, str]:
    """Names of the model and of the task, from what a log says of its evaluator; empty if it says nothing."""

    def name(key: str) -> str:
        value = identity.get(key)
        if isinstance(value, dict):
            value = value.get("name") or value.get("spec")
        return str(value) if isinstance(value, (str, int)) else ""

    return name("model"), name("task")
