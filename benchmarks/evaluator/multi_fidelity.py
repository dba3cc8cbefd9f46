"""Searches on cheap evaluations against searches on full ones, on a recorded real task.

    python benchmarks/evaluator/multi_fidelity.py TRIALS.jsonl --pairs benchmarks/results/rank_correlation.jsonl

TRIALS is the exported log of a real search: the surrogate fitted to it says what a full evaluation would show. What a
cheaper one would show follows from the pairs that `rank_correlation.py` measured: a line through cheap over full
losses, and for every plan a deviation of its own, drawn with the pairs' own scatter about that line. Every way is
charged for the prior, and for low fidelity at its true share. The score is that of the strategy benchmark: the share of
the possible gain over the best uniform plans that is left, over three budgets, of the plans handed over at their
noise-free losses.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qra_eval.evaluators.recorded import Record, RecordedEvaluator, read_record
from qra_eval.landscapes.families import generator
from qra_search.bench.cell import best_uniform
from qra_search.bench.tasks import task_budgets
from qra_search.evaluation.evaluator import Evaluation
from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.space.space import Plan
from qra_search.study.result import SearchResult
from qra_search.study.study import Study


@dataclass(frozen=True)
class Cheap:
    """A cheaper evaluation: its share of a full one's cost, and its loss given the full one."""

    share: float
    at: float
    slope: float
    scatter: float

    def loss(self, full: float, plan: Plan, seed: int) -> float:
        own = float(generator("cheap", seed, plan.key, 0).standard_normal())
        return self.at + self.slope * full + self.scatter * own


class OnlyCheap(RecordedEvaluator):
    """The recorded task as a search sees it whose evaluations are all cheap; costs are in cheap ones."""

    def __init__(self, record: Record, cheap: Cheap, seed: int):
        super().__init__(record, seed=seed)
        self.cheap = cheap

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        loss = self.cheap.loss(self.true_loss(plan), plan, self.seed)
        return Evaluation(loss, self.space.memory_bytes(plan), seconds=0.0, seed=seed)

    def sensitivities(self) -> Sensitivities | None:
        sensitivities = super().sensitivities()
        return sensitivities and replace(sensitivities, cost=sensitivities.cost / self.cheap.share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", help="exported log of a real search")
    parser.add_argument("--pairs", type=Path, default=Path("benchmarks/results/rank_correlation.jsonl"))
    parser.add_argument("--evaluations", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/multi_fidelity.jsonl"))
    options = parser.parse_args()
    record = read_record([options.log])
    n, third = options.evaluations, options.evaluations / 3
    paid = record.sensitivities.cost if record.sensitivities else 0.0
    ways: list[tuple[str, Any, float]] = [
        (f"{n} full evaluations", lambda seed: RecordedEvaluator(record, seed=seed), n + paid),
        ("full evaluations at a third of the cost", lambda seed: RecordedEvaluator(record, seed=seed), third),
    ]
    for cheap in read_pairs(options.pairs):
        own = n + paid / cheap.share
        ways.append(
            (f"{n} evaluations at fidelity {cheap.share:g} alone",
             lambda seed, cheap=cheap: OnlyCheap(record, cheap, seed), own)
        )  # fmt: skip
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(row["way"], row["seed"]) for row in rows}
    for seed in range(options.seeds):
        for name, build, evaluations in ways:
            if (name, seed) in done:
                continue
            rows.append({"way": name, "seed": seed, **search(build(seed), evaluations, seed)})
            with options.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        print(f"seed {seed} done", file=sys.stderr, flush=True)
    print("| search | cost, in full evaluations | share of the gain left, median | quartiles | seeds |")
    print("|---|---|---|---|---|")
    for name, *_ in ways:
        mine = [row for row in rows if row["way"] == name]
        low, median, high = np.quantile([row["left"] for row in mine], (0.25, 0.5, 0.75))
        cost = np.mean([row["cost"] for row in mine])
        print(f"| {name} | {cost:.1f} | {median:.3f} | {low:.3f} to {high:.3f} | {len(mine)} |")


def read_pairs(path: Path) -> list[Cheap]:
    """What every lower fidelity shows, from the losses of plans that were evaluated at it and in full."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    losses: dict[float, dict[str, float]] = {}
    for row in rows:
        if row["what"] == "score" and row["seed"] == 0 and row["loss"] is not None:
            losses.setdefault(row["fidelity"], {})[row["plan"]] = row["loss"]
    full = losses.pop(1.0)
    found = []
    for share, cheap in sorted(losses.items()):
        both = [key for key in full if key in cheap]
        x, y = (np.array([some[key] for key in both]) for some in (full, cheap))
        slope, at = np.polyfit(x, y, 1)
        scatter = float(np.sqrt(np.sum((y - at - slope * x) ** 2) / (len(both) - 2)))
        found.append(Cheap(share, float(at), float(slope), scatter))
    return found


def search(evaluator: RecordedEvaluator, evaluations: float, seed: int) -> dict[str, float]:
    """One search; what it cost in full evaluations, and the share of the possible gain that its plans leave."""
    budgets = task_budgets(evaluator.space)
    study = Study(evaluator, strategy="qra", evaluations=evaluations, memory_budget=budgets, seed=seed)
    study.run()
    result = SearchResult.from_state(study.state, study.strategy)
    best = [result.best(budget) for budget in budgets]  # the uniform plans, at least, were evaluated under each
    handed = float(np.sum([evaluator.true_loss(c.plan) for c in best if c is not None]))
    uniform = float(np.sum([best_uniform(evaluator, budget) for budget in budgets]))
    reference = float(np.sum(evaluator.reference_front(budgets).losses))
    share = evaluator.cheap.share if isinstance(evaluator, OnlyCheap) else 1.0
    return {"cost": study.state.spent * share, "left": (handed - reference) / (uniform - reference)}


if __name__ == "__main__":
    main()
