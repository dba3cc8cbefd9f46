"""The final comparison: the plan found and uniform plans of no more bytes, tuned in full and measured on test data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qra_search.evaluation.protocols import Progress, Tuned, Tunes
from qra_search.files import read_json, write_json
from qra_search.space.space import Plan, SearchSpace
from qra_search.study.result import SearchResult

TEST_FORMAT = "qra-test/1"
FOUND = "found"
UNIFORM = "uniform"
Against = Literal["all", "best", "none"]


@dataclass(frozen=True)
class Tested:
    """One plan of the comparison, over the seeds it was tuned with."""

    role: str
    plan: Plan
    memory_bytes: int
    losses: tuple[float, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def loss(self) -> float:
        """Mean test loss over the seeds; inf if a tuning diverged."""
        return sum(self.losses) / len(self.losses)

    @property
    def loss_error(self) -> float:
        """Standard error of the mean over the seeds; nan for a single one."""
        n = len(self.losses)
        if n < 2:
            return float("nan")
        return math.sqrt(sum((x - self.loss) ** 2 for x in self.losses) / (n - 1) / n)


def opponents(space: SearchSpace, limit: int, against: Against, result: SearchResult | None = None) -> list[Plan]:
    """Uniform plans of at most `limit` bytes, cheapest first: all, or the best by the search's own estimate.

    If the search evaluated none that fits, the largest stands for the best.
    """
    fitting = [plan for plan in space.uniform_plans() if space.memory_bytes(plan) <= limit]
    if against == "none" or not fitting:
        return []
    if against == "all":
        return fitting
    seen = [c for c in (result.uniform if result else []) if c.memory_bytes <= limit]
    return [min(seen, key=lambda c: c.loss).plan if seen else fitting[-1]]


def compare_on_test(
    evaluator: Tunes,
    found: Plan,
    others: Sequence[Plan],
    path: Path,
    *,
    limit: int,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    rows: int | None = None,
    save: Path | None = None,
    progress: Progress | None = None,
    on_tuned: Callable[[Tested, int, int], None] | None = None,
) -> list[Tested]:
    """Tune every plan once for each seed, write `path` after each, and return what it holds.

    A comparison that was broken off is resumed: a plan already tuned with a seed, the same steps and rows
    is not tuned again. The found plan's first tuning is saved into the folder `save`.

    Args:
        limit: bytes that every plan keeps to.
        progress: of each tuning.
        on_tuned: called after each tuning with what is known of its plan, how many are done, and of how many.
    """
    settings = {"format": TEST_FORMAT, "limit": limit, "steps": steps, "rows": rows}
    data = read_json(path) or {}
    entries = data.get("tuned", []) if all(data.get(k) == v for k, v in settings.items()) else []
    order = [found, *(p for p in others if p.key != found.key)]
    entries = [e for e in entries if any(e["plan"] == p.to_dict() for p in order)]
    for done, (seed, plan) in enumerate(itertools.product(seeds, order), start=1):
        folder = save if plan is found and seed == seeds[0] else None
        known = any(e["plan"] == plan.to_dict() and e["seed"] == seed for e in entries)
        if not known or (folder is not None and not (folder / "adapter").is_dir()):
            tuned = evaluator.tune(plan, seed=seed, steps=steps, folder=folder, progress=progress)
            entries = [e for e in entries if not (e["plan"] == plan.to_dict() and e["seed"] == seed)]
            entries.append(_entry(tuned, FOUND if plan is found else UNIFORM))
            write_json(path, {**settings, "tuned": entries}, durable=True)
        if on_tuned is not None:
            on_tuned(next(t for t in _tested(entries) if t.plan == plan), done, len(order) * len(seeds))
    return _tested(entries)


def read_test(data: dict[str, Any] | None) -> list[Tested]:
    """The plans of a `test.json`, cheapest first; empty if there is none.

    Raises:
        ValueError: another format.
    """
    if data is None:
        return []
    if data.get("format") != TEST_FORMAT:
        raise ValueError(f"test.json has format {data.get('format')!r}, {TEST_FORMAT!r} is needed: run qra finetune")
    return _tested(data["tuned"])


def _tested(entries: Sequence[dict[str, Any]]) -> list[Tested]:
    grouped: dict[Plan, list[dict[str, Any]]] = {}
    for entry in entries:
        grouped.setdefault(Plan.from_dict(entry["plan"]), []).append(entry)
    tested = []
    for plan, same in grouped.items():
        names = [n for n in same[0]["metrics"] if all(n in e["metrics"] for e in same)]
        metrics = {n: sum(e["metrics"][n] for e in same) / len(same) for n in names}
        tested.append(
            Tested(
                same[0]["role"],
                plan,
                same[0]["memory_bytes"],
                tuple(math.inf if e["test_loss"] is None else e["test_loss"] for e in same),
                metrics,
                sum(e["seconds"] for e in same),
            )
        )
    return sorted(tested, key=lambda t: (t.memory_bytes, t.loss))


def _entry(tuned: Tuned, role: str) -> dict[str, Any]:
    return {
        "role": role,
        "plan": tuned.plan.to_dict(),
        "seed": tuned.seed,
        "steps": tuned.steps,
        "test_loss": tuned.test_loss if math.isfinite(tuned.test_loss) else None,
        "metrics": {k: v for k, v in tuned.metrics.items() if math.isfinite(v)},
        "memory_bytes": tuned.memory_bytes,
        "seconds": tuned.seconds,
    }
