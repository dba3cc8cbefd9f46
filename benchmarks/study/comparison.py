"""What the study compares: every plan that was tuned to the end, its rivals, and paired intervals of the differences.

Differences are paired, and their intervals taken, as `intervals.difference` says; with m comparisons against found
plans each is at level 1 - 0.05 / m (Bonferroni), so that all hold at once with 95%.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import MIB, read
from benchmarks.study import intervals
from benchmarks.study.intervals import by_seed, paired, table_of

CALIBRATED = "best uniform plan of no more bytes"
UNCALIBRATED = "best of those not calibrated"
OURS = "qra-module-0"
"""The search that the study is about; others are compared with it."""
SERIES = ("-e8", "-low")
"""Ends of the names of searches under other rules, compared among themselves: 8-bit embeddings, lower budgets."""


class Row:
    """A plan of the comparison: its lines, one for each seed."""

    def __init__(self, name: str, lines: list[dict[str, Any]]):
        self.name, self.by_seed = name, by_seed(lines)
        self.bytes = lines[0]["memory_bytes"]
        tokens = sum(lines[0]["row_tokens"])
        self.losses = {seed: float(np.sum(line["row_losses"]) / tokens) for seed, line in self.by_seed.items()}

    @property
    def loss(self) -> float:
        return float(np.mean(list(self.losses.values())))

    @property
    def budget(self) -> str | None:
        """Where a search found the plan: the budget that it was found for."""
        return self.name.partition(" @ ")[2] or None

    @property
    def search(self) -> str:
        """The search that found the plan, or the plan's name."""
        return self.name.partition(" @ ")[0]

    @property
    def series(self) -> str:
        """Of which series its search is."""
        return next((series for series in SERIES if self.search.endswith(series)), "")

    @property
    def own_rate(self) -> bool:
        """Tuned at another learning rate than the rest: compared with nothing."""
        return " at " in self.name

    @property
    def embeddings(self) -> int:
        """Bits of the token embeddings."""
        return 8 if self.series == "-e8" or self.name.endswith("embeddings 8-bit") else 16


def rows_of(path: Path, task: str) -> list[Row]:
    """The rows of a task, cheapest first."""
    grouped = defaultdict(list)
    for line in read(path):
        if line["task"] == task:
            grouped[line["row"]].append(line)
    return sorted((Row(name, lines) for name, lines in grouped.items()), key=lambda r: (r.bytes, r.loss))


def change(a: Row, b: Row, level: float) -> str:
    """Relative change of the loss from b to a, and its interval: (a - b) / b, over the seeds that both have."""
    return intervals.change(*paired(a.by_seed, b.by_seed), level)


class Comparison:
    """Everything tuned on a task, and what the plans that `qra` found there, in one series, are compared with."""

    def __init__(self, results: Path, task: str, series: str = ""):
        self.task = task
        self.rows = rows_of(results / "final.jsonl", task)
        self.plans = [d for d in read(results / "plans.jsonl") if d["search"].startswith(f"{task}-")]
        limits = {f"{d['search'].removeprefix(task + '-')} @ {d['budget']}": d["limit"] for d in self.plans}
        self.uniform = [r for r in self.rows if r.budget is None and r.embeddings == 16 and not r.own_rate]
        self.sixteen = min((r for r in self.uniform if r.name.startswith("16-bit")), key=lambda r: r.loss, default=None)
        self.ours = [r for r in self.rows if r.search == OURS + series]
        self.rivals: list[tuple[Row, Row, str]] = []
        self.searches: list[tuple[Row, Row, str]] = []
        for f in self.ours:
            limit = limits.get(f.name, f.bytes)
            fitting = [r for r in self.uniform if r.bytes <= limit and r is not self.sixteen]
            for some, label in (
                (fitting, CALIBRATED),
                ([r for r in fitting if not r.name.startswith("gptq")], UNCALIBRATED),
            ):
                if some:
                    self.rivals.append((f, min(some, key=lambda r: r.loss), label))
            self.rivals += [
                (f, r, "") for r in self.rows
                if f.embeddings == r.embeddings == 8 and r.budget is None and r.bytes <= limit
            ]  # fmt: skip
            self.rivals += [
                (f, r, "") for r in self.uniform if r.name in ("nf4 4-bit r8", "hqq 3-bit r8") and r.bytes > limit
            ]
            if self.sixteen is not None:
                self.rivals.append((f, self.sixteen, ""))
            self.searches += [
                (f, r, r.search) for r in self.rows if r.budget == f.budget and r.series == series and r is not f
            ]
        self.comparisons = len(self.rivals) + len(self.searches)
        self.level = 1 - 0.05 / max(self.comparisons, 1)
        self.together = f"Intervals hold together at 95% ({self.comparisons} comparisons)."

    def every_plan(self) -> list[str]:
        body = []
        for r in self.rows:
            each = ", ".join(f"{x:.3f}" for _, x in sorted(r.losses.items()))
            name = f"**{r.name}**" if r in self.ours else r.name
            body.append([name, f"{r.bytes / MIB:.1f}", f"{r.loss:.4f}", str(len(r.losses)), each])
        return table_of(["plan", "MiB", "test loss, mean of seeds", "seeds", "each seed"], body)

    def against_uniform(self) -> list[str]:
        body = [
            [str(a.budget), f"{a.bytes / MIB:.1f}", f"{a.loss:.4f}", f"{label}: {b.name}" if label else b.name,
             f"{b.bytes / MIB:.1f}", f"{b.loss:.4f}", change(a, b, self.level)]
            for a, b, label in self.rivals
        ]  # fmt: skip
        return table_of(["budget", "MiB", "test loss", "against", "MiB", "its loss", "change"], body)

    def against_searches(self) -> list[str]:
        budgets = [str(r.budget) for r in self.ours]
        found = {(label, a.budget): change(a, b, self.level) for a, b, label in self.searches}
        names = sorted({label for label, _ in found})
        return table_of(["against", *budgets], [[n, *(found.get((n, b), "–") for b in budgets)] for n in names])

    def costs(self) -> list[str]:
        body = [
            [d["search"], d["budget"], f"{d['limit'] / MIB:.1f}", "–" if d["loss"] is None else f"{d['loss']:.4f}",
             f"{d['spent']:.1f}", f"{d['epoch_share']:.2f}"]
            for d in self.plans
        ]  # fmt: skip
        return table_of(["search", "budget", "limit, MiB", "validation loss", "evaluations", "epochs"], body)

    def text(self) -> str:
        parts = [f"# Test loss on {self.task}", "", *self.every_plan(), "", self.together, ""]
        parts += ["## Plans found by qra against uniform ones", "", *self.against_uniform(), ""]
        parts += ["## Plans found by qra against other searches' plans", "", *self.against_searches(), ""]
        return "\n".join([*parts, "## Searches", "", *self.costs()]) + "\n"


def brief(c: Comparison, names: Sequence[str]) -> list[list[str]]:
    """Cells of a line for each plan found: budget, MiB, test loss, and its change from each of these rivals'."""
    found = []
    for f in c.ours:
        rivals = {label or b.name: b for a, b, label in c.rivals + c.searches if a is f}
        cells = [change(f, rivals[name], c.level) if name in rivals else "–" for name in names]
        found.append([str(f.budget), f"{f.bytes / MIB:.1f}", f"{f.loss:.4f}", *cells])
    return found
