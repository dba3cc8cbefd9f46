"""The final comparison: the plan found and uniform plans of no more bytes, tuned in full and measured on test data."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qra_search.errors import RunFailed
from qra_search.evaluation.evaluator import EvaluationFailed, Evaluator, Figures, Progress, ReloadFailed, Tuned
from qra_search.files import read_json, write_json
from qra_search.runs.intervals import paired_interval
from qra_search.space.space import Plan, SearchSpace
from qra_search.study.result import SearchResult

TEST_FORMAT = "qra-test/1"
TWO_SIDED = 1.96
"""Standard errors on either side that hold 95%."""
TUNING = "tuning"
"""Folder beside a comparison, with one for each of its tunings: its curve, and what it is resumed from."""
FOUND = "found"
UNIFORM = "uniform"
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


def opponents(space: SearchSpace, limit: int, against: Against, result: SearchResult | None = None) -> list[Plan]:
    """Uniform plans of at most `limit` bytes, cheapest first: all, or the best by the search's own estimate.

    If the search evaluated none that fits, the best is the one of lowest predicted loss; without a prior the largest.
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


def compare_on_test(
    evaluator: Evaluator,
    found: Plan,
    others: Sequence[Plan],
    path: Path,
    *,
    space: SearchSpace,
    limit: int,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    rows: int | None = None,
    changed: Mapping[str, Any] | None = None,
    save: Path | None = None,
    progress: Progress | None = None,
    figures: Callable[[str], Figures] | None = None,
    on_tuned: Callable[[TestResult, int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[TestResult]:
    """Tune every plan once for each seed, write `path` after each, and return what it holds.

    A comparison that was broken off is resumed: a plan already tuned with a seed, the same steps, rows and settings
    is not tuned again, one that failed is, and one that was cut off midway goes on. The found plan's first tuning is
    saved into the folder `save`; if that does not load back as it was tuned, this is recorded with what was measured.
    Uniform plans that were tuned alike before stay in the comparison, also if they are not among `others` now.

    Args:
        space: of the plans.
        limit: bytes that every plan keeps to.
        changed: settings by dotted name that are other than the run's.
        progress: of each tuning.
        figures: by the name of a tuning, what hears of its steps.
        on_tuned: called after each tuning with what is known of its plan, how many are done, and of how many.
        say: is given one line if a comparison is resumed: what was found, and what is left.

    Raises:
        TuningFailed: the found plan cannot be tuned; another that cannot is recorded as such, and the rest go on.
    """
    settings = {"format": TEST_FORMAT, "limit": limit, "steps": steps, "rows": rows}
    changed = dict(changed) if changed else None
    data = read_json(path) or {}
    same = all(data.get(k) == v for k, v in settings.items()) and data.get("changed") == changed
    settings |= {"changed": changed} if changed else {}
    entries = data.get("tuned", []) if same else []
    order = [found, *(p for p in others if p.key != found.key)]
    wanted = {plan.key: FOUND if plan is found else UNIFORM for plan in order}
    roles = [wanted.get(Plan.from_dict(e["plan"]).key) for e in entries]
    earlier = [e for e, role in zip(entries, roles, strict=True) if role is None and e["role"] == UNIFORM]
    entries = [{**e, "role": role} for e, role in zip(entries, roles, strict=True) if role is not None]
    total = len(order) * len(seeds)
    ready = sum(e["seed"] in seeds and "failed" not in e for e in entries)
    if ready and say is not None:
        say(f"resumed: {ready} of {total} tunings are done, {total - ready} left")
    for done, (seed, plan) in enumerate(itertools.product(seeds, order), start=1):
        folder = save if plan is found and seed == seeds[0] else None
        entry = next((e for e in entries if e["plan"] == plan.to_dict() and e["seed"] == seed), None)
        if entry is None or "failed" in entry or (folder is not None and not (folder / "adapter").is_dir()):
            entries = [e for e in entries if e is not entry]
            start = time.perf_counter()
            try:
                name = tuning_name(plan, seed, space)
                tuned = evaluator.tune(
                    plan, seed=seed, steps=steps, folder=folder, kept=path.parent / TUNING / name, progress=progress,
                    figures=None if figures is None else figures(name),
                )  # fmt: skip
                entry = _entry(tuned)
            except ReloadFailed as error:
                entry = {**_entry(error.tuned), "reload_error": str(error)}
            except EvaluationFailed as error:
                entry = {
                    "plan": plan.to_dict(), "seed": seed, "steps": steps, "test_loss": None, "metrics": {},
                    "memory_bytes": space.memory_bytes(plan), "seconds": time.perf_counter() - start,
                    "failed": str(error),
                }  # fmt: skip
            entries.append({"role": FOUND if plan is found else UNIFORM, **entry})
            write_json(path, {**settings, "tuned": entries + earlier}, durable=True)
        if on_tuned is not None:
            on_tuned(next(t for t in _tested(entries) if t.plan == plan), done, total)
        if plan is found and "failed" in entry:
            raise TuningFailed(f"the plan could not be tuned with seed {seed}: {entry['failed']} (kept in {path})")
    return _tested(entries + earlier)


def tuning_name(plan: Plan, seed: int, space: SearchSpace) -> str:
    """A short name for one tuning of a comparison, that of its folder."""
    choice = space.uniform_choice(plan)
    if choice is not None:
        return f"uniform-{choice[0]}-rank-{choice[1]}-seed-{seed}"
    return f"plan-{hashlib.sha256(plan.key.encode()).hexdigest()[:8]}-seed-{seed}"


def read_test(data: dict[str, Any] | None) -> list[TestResult]:
    """The plans of a `test.json`, cheapest first; empty if there is none.

    Raises:
        ValueError: another format.
    """
    if data is None:
        return []
    if data.get("format") != TEST_FORMAT:
        raise ValueError(f"test.json has format {data.get('format')!r}, {TEST_FORMAT!r} is needed: run qra finetune")
    return _tested(data["tuned"])


def metrics_of(tested: Sequence[TestResult]) -> list[str]:
    """Names of the figures that all plans have which could be tuned."""
    whole = [t for t in tested if not t.failed]
    return [name for name in (whole[0].metrics if whole else {}) if all(name in t.metrics for t in whole)]


def _tested(entries: Sequence[dict[str, Any]]) -> list[TestResult]:
    grouped: dict[Plan, list[dict[str, Any]]] = {}
    for entry in entries:
        grouped.setdefault(Plan.from_dict(entry["plan"]), []).append(entry)
    tested = []
    for plan, same in grouped.items():
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


def _entry(tuned: Tuned) -> dict[str, Any]:
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
