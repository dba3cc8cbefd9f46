"""`test.json`: what is compared, and each tuning's entry, written as it ends."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qra_search.config import FinetuneConfig, RunConfig
from qra_search.evaluation.evaluator import Tuned
from qra_search.files import read_json, write_json
from qra_search.runs.comparison import FOUND, SIXTEEN, TEST_FORMAT, UNIFORM, UNTUNED, TestResult, tested_in
from qra_search.space.space import Plan, SearchSpace

OF_A_SEARCH = frozenset({"training", "evaluation", "rows", "metric"})
"""Parts of what identifies an evaluator that say nothing of a full tuning, or are said of it anew."""


@dataclass(frozen=True)
class Contest:
    """What is compared: a plan found, its uniform opponents, and how each is tuned.

    Attributes:
        limit: bytes that every plan keeps to.
        seeds: each plan is tuned once with each.
        rows: test rows.
        conditions: all else that a tuning follows from, as plain data; see `conditions`.
        sixteen: a plan of 16 bits to tune as well; None: there is none.
    """

    found: Plan
    others: tuple[Plan, ...]
    limit: int
    seeds: tuple[int, ...] = (0,)
    rows: int | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    sixteen: Plan | None = None

    @property
    def plans(self) -> list[Plan]:
        """The found plan first, each plan once."""
        return list(dict.fromkeys(plan for plan in (self.found, *self.others, self.sixteen) if plan is not None))

    @property
    def settings(self) -> dict[str, Any]:
        """What `test.json` says of all its entries."""
        shared = {"format": TEST_FORMAT, "limit": self.limit, "rows": self.rows}
        return {**shared, "conditions": dict(self.conditions)}

    def role(self, key: str) -> str:
        """`FOUND`, `UNIFORM` or `SIXTEEN`, by the key of one of `plans`."""
        if key == self.found.key:
            return FOUND
        return UNIFORM if any(plan.key == key for plan in self.others) else SIXTEEN

    def counts(self, data: Mapping[str, Any]) -> bool:
        """Whether the plans of a `test.json` were tuned and measured alike, so that they still count."""
        return all(data.get(key) == value for key, value in self.settings.items())


def conditions(config: RunConfig, evaluator: Mapping[str, Any], data: str) -> dict[str, Any]:
    """What tunings have to share, beside limit and rows, to be compared: settings, model, backend and data.

    Args:
        evaluator: what identifies it; what is of short tunings alone is left out.
        data: identifies the rows of tuning and test.
    """
    finetune = config.finetune.model_dump(exclude=set(FinetuneConfig.beside))
    kept = {name: value for name, value in evaluator.items() if name not in OF_A_SEARCH}
    found = {"training": config.training.model_dump(), "finetune": finetune, "evaluator": kept, "data": data}
    plain: dict[str, Any] = json.loads(json.dumps(found))  # as it is read back
    return plain


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
        return next(t for t in tested_in(self.entries) if t.plan == plan)

    @property
    def results(self) -> list[TestResult]:
        """All plans, cheapest first."""
        return tested_in(self.entries + self.earlier)

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
