"""The final comparison: the plan found and its uniform rivals, tuned in full and tested, and what tells them apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from qra_search.errors import BadInput, RunFailed, describe
from qra_search.space.space import Plan, SearchSpace
from qra_search.study.result import SearchResult

TEST_FORMAT = "qra-test/1"
TWO_SIDED = 1.96
"""Standard errors on either side that hold 95%."""
LEVEL = 0.95
DRAWS = 2000
LEAST_ROWS = 8
"""Fewer rows say nothing about others of their kind."""
TUNING = "tuning"
"""Folder beside a comparison, with one for each of its tunings: its curve, and what it is resumed from."""
FOUND = "found"
UNIFORM = "uniform"
UNTUNED = "untuned"
SIXTEEN = "16-bit"
"""Tuned like the plan, on the model as it is; like the untuned model it is there to measure by, and no rival."""
Against = Literal["all", "best", "none"]


class TuningFailed(RunFailed):
    """The plan found could not be tuned: there is nothing to compare others with."""


@dataclass(frozen=True)
class TestResult:
    """One plan of the comparison, over the seeds it was tuned with.

    Attributes:
        scored: test rows that the metrics are of; 0 if that is not known.
        failed: why it could not be tuned with a seed; empty if it could.
        reload_error: why what was saved of it does not load back as it was tuned; empty if it does.
        row_nats: summed test loss of each row, the mean over the seeds; empty if the evaluator does not say.
        row_tokens: labelled tokens of each row.
        samples: generated answers, each with `prompt`, `wanted`, `before` and `after` the tuning.
    """

    role: str
    plan: Plan
    memory_bytes: int
    losses: tuple[float, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    scored: int = 0
    failed: str = ""
    reload_error: str = ""
    row_nats: tuple[float, ...] = ()
    row_tokens: tuple[int, ...] = ()
    samples: tuple[dict[str, str], ...] = ()
    __test__ = False  # no test class, whatever pytest takes it for

    @property
    def loss(self) -> float:
        """Mean test loss over the seeds; inf if a tuning failed or diverged."""
        return sum(self.losses) / len(self.losses)

    @property
    def loss_error(self) -> float:
        """Standard error of the mean over the seeds; nan for a single one."""
        n = len(self.losses)
        if n < 2:
            return float("nan")
        return math.sqrt(sum((x - self.loss) ** 2 for x in self.losses) / (n - 1) / n)


def difference(found: TestResult, other: TestResult) -> tuple[float, float] | None:
    """Interval at 95% of a plan's test loss less another's, in nats; None if nothing tells it.

    From the rows that both were measured on, widened by the spread over seeds if there are several; by that spread
    alone if the rows are not known.
    """
    if found.failed or other.failed or not (math.isfinite(found.loss) and math.isfinite(other.loss)):
        return None
    change = found.loss - other.loss
    seeds = TWO_SIDED * math.hypot(found.loss_error, other.loss_error)
    rows = None
    if found.row_tokens and found.row_tokens == other.row_tokens:
        rows = paired_interval(found.row_nats, other.row_nats, found.row_tokens)
    if rows is None:
        return (change - seeds, change + seeds) if math.isfinite(seeds) else None
    if not math.isfinite(seeds):
        return rows
    return change - math.hypot(change - rows[0], seeds), change + math.hypot(rows[1] - change, seeds)


def paired_interval(
    nats: Sequence[float], other_nats: Sequence[float], tokens: Sequence[int]
) -> tuple[float, float] | None:
    """Interval at 95% of the difference of two losses, in nats a token, by paired bootstrap over rows (Efron 1979).

    The same each time.

    Args:
        nats, other_nats: summed loss of each row (N,) under the one plan and the other.
        tokens: labelled tokens of each row (N,), not all zero.

    Returns:
        Lowest and highest difference, the one less the other; None with fewer than `LEAST_ROWS` rows.
    """
    change, weight = np.subtract(nats, other_nats), np.asarray(tokens, dtype=float)
    if len(change) < LEAST_ROWS:
        return None
    rng = np.random.default_rng(0)
    drawn = np.empty(DRAWS)
    for i in range(DRAWS):
        rows = rng.integers(len(change), size=len(change))
        drawn[i] = change[rows].sum() / max(weight[rows].sum(), 1.0)
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def opponents(space: SearchSpace, limit: int, against: Against, result: SearchResult | None = None) -> list[Plan]:
    """Uniform plans of at most `limit` bytes, cheapest first: all, or the best by the search's own estimate.

    If the search evaluated none that fits, the best is the one of lowest predicted loss, or the largest without
    sensitivities.
    """
    fitting = space.uniform_plans(limit)
    if against == "none" or not fitting:
        return []
    if against == "all":
        return fitting
    seen = [c for c in (result.uniform if result else []) if c.memory_bytes <= limit]
    if seen:
        return [min(seen, key=lambda c: c.loss).plan]
    allocation = result.allocation(limit) if result else None
    best = None if allocation is None else allocation.best_uniform
    return [fitting[-1] if best is None else best.plan]


def read_test(data: dict[str, Any] | None) -> list[TestResult]:
    """The plans of a `test.json`, cheapest first; empty if there is none.

    Raises:
        BadInput: another format, or fields that are missing.
    """
    if data is None:
        return []
    if (known := data.get("format") if isinstance(data, dict) else None) != TEST_FORMAT:
        raise BadInput(f"test.json has format {known!r}, {TEST_FORMAT!r} is needed: run qra finetune")
    try:
        return tested_in(data["tuned"])
    except (KeyError, TypeError, IndexError) as error:
        raise BadInput(
            f"test.json is damaged ({describe(error)}): move it away, and qra finetune makes it anew"
        ) from error


def metrics_of(tested: Sequence[TestResult]) -> list[str]:
    """Names of the figures that all plans have which could be tuned; the untuned model may lack some."""
    whole = [t for t in tested if not t.failed and t.role != UNTUNED]
    return [name for name in (whole[0].metrics if whole else {}) if all(name in t.metrics for t in whole)]


def tested_in(entries: Sequence[dict[str, Any]]) -> list[TestResult]:
    """The plans of a `test.json`'s entries, cheapest first."""
    grouped: dict[tuple[Plan, bool], list[dict[str, Any]]] = {}
    for entry in entries:
        grouped.setdefault((Plan.from_dict(entry["plan"]), entry["role"] == UNTUNED), []).append(entry)
    tested = []
    for (plan, _), same in grouped.items():
        names = [n for n in same[0]["metrics"] if all(n in e["metrics"] for e in same)]
        metrics = {n: sum(e["metrics"][n] for e in same) / len(same) for n in names}
        tested.append(
            TestResult(
                same[0]["role"],
                plan,
                same[0]["memory_bytes"],
                tuple(math.inf if e["test_loss"] is None else e["test_loss"] for e in same),
                metrics,
                sum(e["seconds"] for e in same),
                scored=min(e.get("scored", 0) for e in same),
                failed=next((e["failed"] for e in same if "failed" in e), ""),
                row_nats=_mean_rows([e.get("row_nats", ()) for e in same]),
                row_tokens=tuple(same[0].get("row_tokens", ())),
                samples=tuple(
                    {name: sample[name] for name in ("prompt", "wanted", "before", "after")}
                    for sample in next((e["samples"] for e in same if "samples" in e), ())
                ),
                reload_error=next((e["reload_error"] for e in same if "reload_error" in e), ""),
            )
        )
    return sorted(tested, key=lambda t: (t.memory_bytes, t.loss))


def _mean_rows(several: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Losses by row, the mean over seeds; empty if they are not of the same rows."""
    if len({len(nats) for nats in several}) != 1:
        return ()
    return tuple(sum(nats) / len(several) for nats in zip(*several, strict=True))
