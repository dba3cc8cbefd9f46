"""What the study compares: every plan that was tuned to the end, its rivals, and paired intervals of the differences.

Differences are paired, and their intervals taken, as `lines.difference` says; with m comparisons against found plans
each is at level 1 - 0.05 / m (Bonferroni), so that all hold at once with 95%.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import protocol
from lines import difference
from lines import read as lines

CALIBRATED = "best uniform plan of no more bytes"
UNCALIBRATED = "best of those not calibrated"
OURS = "qra-module-0"
"""The search that the study is about; others are compared with it."""
SERIES = ("-e8", "-low")
"""Ends of the names of searches under other rules, compared among themselves: 8-bit embeddings, lower budgets."""


class Row:
    """A plan of the comparison: summed losses (S, N) of its seeds on the test rows, and their tokens (N,)."""

    def __init__(self, name: str, lines: list[dict]):
        self.name = name
        self.by_seed = {d["seed"]: np.array(d["row_losses"]) for d in lines}
        self.tokens = np.array(lines[0]["row_tokens"])
        self.bytes = lines[0]["memory_bytes"]
        self.losses = {seed: float(x.sum() / self.tokens.sum()) for seed, x in self.by_seed.items()}

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
        """Tuned at another learning rate than the rest: only compared with other beginnings."""
        return " at " in self.name

    @property
    def embeddings(self) -> int:
        """Bits of the token embeddings."""
        return 8 if self.series == "-e8" or self.name.endswith("embeddings 8-bit") else 16


def shown(loss: float | None) -> str:
    """A loss, where plans were evaluated at all."""
    return "–" if loss is None else f"{loss:.4f}"


def read(path: Path, task: str) -> list[Row]:
    """The rows of a task, cheapest first."""
    grouped = defaultdict(list)
    for data in lines(path):
        if data["task"] == task:
            grouped[data["row"]].append(data)
    return sorted((Row(name, lines) for name, lines in grouped.items()), key=lambda r: (r.bytes, r.loss))


def change(a: Row, b: Row, level: float, *, seeds: Sequence[int] = protocol.SEEDS) -> tuple[float, float, float]:
    """Relative change of the loss from b to a, and its interval: (a - b) / b. Over those of `seeds` that both have."""
    shared = sorted(set(a.by_seed) & set(b.by_seed) & set(seeds))
    low, mean, high = difference(*(np.array([r.by_seed[s] for s in shared]) for r in (a, b)), level=level)
    return mean, low, high


def percent(x: float) -> str:
    return f"{100 * x:+.1f}%"


def interval(found: tuple[float, float, float]) -> str:
    return f"{percent(found[0])} [{percent(found[1])}, {percent(found[2])}]"


class Comparison:
    """Everything tuned on a task, and what the plans that `qra` found there, in one series, are compared with."""

    def __init__(self, results: Path, task: str, series: str = ""):
        self.task = task
        self.rows = read(results / "final.jsonl", task)
        self.plans = [d for d in lines(results / "plans.jsonl") if d["search"].startswith(f"{task}-")]
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
        table = ["| plan | MiB | test loss, mean of seeds | seeds | each seed |", "|---|---|---|---|---|"]
        for r in self.rows:
            each = ", ".join(f"{x:.3f}" for _, x in sorted(r.losses.items()))
            name = f"**{r.name}**" if r in self.ours else r.name
            table.append(f"| {name} | {r.bytes / 2**20:.1f} | {r.loss:.4f} | {len(r.losses)} | {each} |")
        return table

    def against_uniform(self) -> list[str]:
        table = ["| budget | MiB | test loss | against | MiB | its loss | change |", "|---|---|---|---|---|---|---|"]
        for a, b, label in self.rivals:
            who = f"{label}: {b.name}" if label else b.name
            table.append(
                f"| {a.budget} | {a.bytes / 2**20:.1f} | {a.loss:.4f} | {who} | {b.bytes / 2**20:.1f} | {b.loss:.4f} "
                f"| {interval(change(a, b, self.level))} |"
            )
        return table

    def against_searches(self) -> list[str]:
        budgets = [r.budget for r in self.ours]
        found = {(label, a.budget): interval(change(a, b, self.level)) for a, b, label in self.searches}
        table = [f"| against | {' | '.join(map(str, budgets))} |", "|---" * (len(budgets) + 1) + "|"]
        for label in sorted({label for label, _ in found}):
            table.append(f"| {label} | {' | '.join(found.get((label, budget), '–') for budget in budgets)} |")
        return table

    def costs(self) -> list[str]:
        table = [
            "| search | budget | limit, MiB | validation loss | evaluations | epochs |",
            "|---|---|---|---|---|---|",
        ]
        for d in self.plans:
            table.append(
                f"| {d['search']} | {d['budget']} | {d['limit'] / 2**20:.1f} | {shown(d['loss'])} | {d['spent']:.1f} "
                f"| {d['epoch_share']:.2f} |"
            )
        return table

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
        cells = [interval(change(f, rivals[name], c.level)) if name in rivals else "–" for name in names]
        found.append([str(f.budget), f"{f.bytes / 2**20:.1f}", f"{f.loss:.4f}", *cells])
    return found
