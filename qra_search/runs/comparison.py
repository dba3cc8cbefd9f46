"""The final comparison: what is kept of the plan found and its uniform rivals, tuned in full and tested."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qra_search.errors import BadInput, RunFailed
from qra_search.evaluation.evaluator import Tuned
from qra_search.files import read_json, write_json
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
    nats: Sequence[float], other_nats: Sequence[float], tokens: Sequence[int], *, draws: int = DRAWS
) -> tuple[float, float] | None:
    """Interval at 95% of the difference of two losses, in nats a token, by paired bootstrap over rows (Efron 1979).

    Args:
        nats, other_nats: summed loss of each row (N,) under the one plan and the other.
        tokens: labelled tokens of each row (N,), not all zero.
        draws: resamplings of the rows; they follow from no seed but 0, so that an interval can be made again.

    Returns:
        Lowest and highest difference, the one less the other; None with fewer than `LEAST_ROWS` rows.
    """
    change, weight = np.subtract(nats, other_nats), np.asarray(tokens, dtype=float)
    if len(change) < LEAST_ROWS:
        return None
    rng = np.random.default_rng(0)
    drawn = np.empty(draws)
    for i in range(draws):
        rows = rng.integers(len(change), size=len(change))
        drawn[i] = change[rows].sum() / max(weight[rows].sum(), 1.0)
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def opponents(space: SearchSpace, limit: int, against: Against, result: SearchResult | None = None) -> list[Plan]:
    """Uniform plans of at most `limit` bytes, cheapest first: all, or the best by the search's own estimate.

    If the search evaluated none that fits, the best is the one of lowest predicted loss, or the largest without
    sensitivities.
    """
    fitting = [plan for plan in space.uniform_plans() if space.memory_bytes(plan) <= limit]
    if against == "none" or not fitting:
        return []
    if against == "all":
        return fitting
    seen = [c for c in (result.uniform if result else []) if c.memory_bytes <= limit]
    if seen:
        return [min(seen, key=lambda c: c.loss).plan]
    foretold = result.forecast(limit) if result else None
    return [foretold.rival.plan if foretold is not None and foretold.rival is not None else fitting[-1]]


@dataclass(frozen=True)
class Contest:
    """What is compared: a plan found, its uniform opponents, and how each is tuned.

    Attributes:
        limit: bytes that every plan keeps to.
        seeds: each plan is tuned once with each.
        steps: of each tuning; None: as the run's settings say.
        rows: test rows.
        changed: settings by dotted name that are other than the run's, and change what a tuning gives.
        sixteen: a plan of 16 bits to tune as well; None: there is none.
    """

    found: Plan
    others: tuple[Plan, ...]
    limit: int
    seeds: tuple[int, ...] = (0,)
    steps: int | None = None
    rows: int | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)
    sixteen: Plan | None = None

    @property
    def plans(self) -> list[Plan]:
        """The found plan first, each plan once."""
        return list(dict.fromkeys(plan for plan in (self.found, *self.others, self.sixteen) if plan is not None))

    @property
    def settings(self) -> dict[str, Any]:
        """What `test.json` says of all its entries."""
        shared = {"format": TEST_FORMAT, "limit": self.limit, "steps": self.steps, "rows": self.rows}
        return shared | ({"changed": dict(self.changed)} if self.changed else {})

    def role(self, key: str) -> str:
        """`FOUND`, `UNIFORM` or `SIXTEEN`, by the key of one of `plans`."""
        if key == self.found.key:
            return FOUND
        return UNIFORM if any(plan.key == key for plan in self.others) else SIXTEEN

    def counts(self, data: Mapping[str, Any]) -> bool:
        """Whether the plans of a `test.json` were tuned and measured alike, so that they still count."""
        return all(data.get(key) == self.settings.get(key) for key in ("format", "limit", "steps", "rows", "changed"))


class TestFile:
    """`test.json` while plans are tuned: one entry for each plan and seed, written as each ends.

    Attributes:
        entries: of the plans that are compared now.
        earlier: of other plans that were measured alike before, and stay in the comparison.
    """

    __test__ = False  # no test class, whatever pytest takes it for

    def __init__(self, path: Path, contest: Contest):
        """Read the file; entries that were tuned otherwise are not taken over."""
        self._path, self._contest = path, contest
        known = read_json(path) or {}
        compared, tuned = {plan.key for plan in contest.plans}, known.get("tuned", []) if contest.counts(known) else []
        keys = [Plan.from_dict(entry["plan"]).key for entry in tuned]
        self.entries = [
            {**entry, "role": contest.role(key)} for entry, key in zip(tuned, keys, strict=True) if key in compared
        ]
        self.earlier = [
            entry for entry, key in zip(tuned, keys, strict=True) if key not in compared and entry["role"] != FOUND
        ]

    def find(self, plan: Plan, seed: int) -> dict[str, Any] | None:
        """The entry of a tuning that succeeded; None if it has to be tuned (again)."""
        entry = self._entry(plan, seed)
        return None if entry is None or "failed" in entry else entry

    @property
    def has_untuned(self) -> bool:
        """Whether the untuned model is in the comparison."""
        return any(entry["role"] == UNTUNED and "failed" not in entry for entry in self.earlier)

    def put(self, plan: Plan, entry: Mapping[str, Any]) -> None:
        """Take an entry in, in the place of an earlier one of the same plan and seed, and write the file."""
        self.entries = [e for e in self.entries if e is not self._entry(plan, entry["seed"])]
        self.entries.append({"role": self._contest.role(plan.key), **entry})
        self._write()

    def put_untuned(self, entry: Mapping[str, Any]) -> None:
        """Take in what the untuned model gave, and write the file."""
        self.earlier = [e for e in self.earlier if e["role"] != UNTUNED] + [{"role": UNTUNED, **entry}]
        self._write()

    def _write(self) -> None:
        write_json(self._path, {**self._contest.settings, "tuned": self.entries + self.earlier}, durable=True)

    def result(self, plan: Plan) -> TestResult:
        """What is known of a plan that was tuned."""
        return next(t for t in _tested(self.entries) if t.plan == plan)

    @property
    def results(self) -> list[TestResult]:
        """All plans, cheapest first."""
        return _tested(self.entries + self.earlier)

    def _entry(self, plan: Plan, seed: int) -> dict[str, Any] | None:
        return next((e for e in self.entries if e["plan"] == plan.to_dict() and e["seed"] == seed), None)


def tuned_entry(tuned: Tuned) -> dict[str, Any]:
    """What `test.json` keeps of a tuning."""
    more: dict[str, Any] = {}
    if tuned.row_nats and all(map(math.isfinite, tuned.row_nats)):
        more = {"row_nats": [round(x, 6) for x in tuned.row_nats], "row_tokens": list(tuned.row_tokens)}
    if tuned.samples:
        more["samples"] = [dict(sample) for sample in tuned.samples]
    if tuned.scored:
        more["scored"] = tuned.scored
    return {
        "plan": tuned.plan.to_dict(),
        "seed": tuned.seed,
        "steps": tuned.steps,
        "test_loss": tuned.test_loss if math.isfinite(tuned.test_loss) else None,
        "metrics": {k: v for k, v in tuned.metrics.items() if math.isfinite(v)},
        "memory_bytes": tuned.memory_bytes,
        "seconds": tuned.seconds,
        **more,
    }


def tuning_name(plan: Plan, seed: int, space: SearchSpace) -> str:
    """A short name for one tuning of a comparison, that of its folder."""
    choice = space.of(plan).uniform_choice(plan)
    if choice is not None:
        return f"uniform-{choice[0]}-rank-{choice[1]}-seed-{seed}"
    return f"plan-{hashlib.sha256(plan.key.encode()).hexdigest()[:8]}-seed-{seed}"


def read_test(data: dict[str, Any] | None) -> list[TestResult]:
    """The plans of a `test.json`, cheapest first; empty if there is none.

    Raises:
        BadInput: another format.
    """
    if data is None:
        return []
    if (known := data.get("format") if isinstance(data, dict) else None) != TEST_FORMAT:
        raise BadInput(f"test.json has format {known!r}, {TEST_FORMAT!r} is needed: run qra finetune")
    return _tested(data["tuned"])


def metrics_of(tested: Sequence[TestResult]) -> list[str]:
    """Names of the figures that all plans have which could be tuned; the untuned model may lack some."""
    whole = [t for t in tested if not t.failed and t.role != UNTUNED]
    return [name for name in (whole[0].metrics if whole else {}) if all(name in t.metrics for t in whole)]


def _tested(entries: Sequence[dict[str, Any]]) -> list[TestResult]:
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
                samples=tuple(next((e["samples"] for e in same if "samples" in e), ())),
                reload_error=next((e["reload_error"] for e in same if "reload_error" in e), ""),
            )
        )
    return sorted(tested, key=lambda t: (t.memory_bytes, t.loss))


def _mean_rows(several: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Losses by row, the mean over seeds; empty if they are not of the same rows."""
    if len({len(nats) for nats in several}) != 1:
        return ()
    return tuple(sum(nats) / len(several) for nats in zip(*several, strict=True))
