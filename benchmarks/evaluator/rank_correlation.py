"""How well each cheap score ranks random plans of like size by their full-fidelity loss, with bootstrap intervals.

    python benchmarks/evaluator/rank_correlation.py --plans 40 --set training.steps=8 --out FILE.jsonl

Scores: the prior alone, one adapter trained for all plans, each lower fidelity, and the full evaluation with another
seed, which is what noise leaves of a perfect score. Every evaluation is appended to FILE as it ends, and one that is
there is not made again: a run that was broken off goes on. `--table` only prints what the file says.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from commit import commit
from scipy import stats

from qra_search.cli.common import pair
from qra_search.config import RunConfig, make_config
from qra_search.evaluation.evaluator import EvaluationFailed
from qra_search.space.budgets import resolve
from qra_search.space.sampling import leaning_plan
from qra_search.space.space import Plan, SearchSpace
from qra_search.strategies.evolution.edits import PlanCodec
from qra_search.surrogates.prior_table import prior_losses

REPLICATE = 1
"""Seed of the second full evaluation; all others have seed 0."""
RESAMPLES = 2000
LEAST_SHARE = 0.85
"""Plans are drawn to take at least this share of the budget: over all sizes any score would rank well."""
ATTEMPTS = 1000


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation of a cheap score with the full loss over `plans` plans, and its 95% interval.

    Attributes:
        cost: full evaluations that one score costs.
    """

    name: str
    rho: float
    low: float
    high: float
    plans: int
    cost: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--data")
    parser.add_argument("--memory", default="uniform3r8", help="bytes that the plans take, 85 to 100%% of them")
    parser.add_argument("--plans", type=int, default=40)
    parser.add_argument("--replicates", type=int, default=12, help="plans evaluated in full with a second seed")
    parser.add_argument("--skip", type=float, nargs="*", default=[], help="fidelities not evaluated in this run")
    parser.add_argument("--shared-steps", type=int, default=24)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as of qra search")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rank_correlation.jsonl"))
    options = parser.parse_args()
    fields = {"model.name": options.model, "task.name": options.task, "task.data": options.data}
    fields |= {"training.shared_steps": options.shared_steps, **dict(map(pair, options.set))}
    config = make_config({}, {k: v for k, v in fields.items() if v is not None})
    records = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    if not options.table:
        measure(config, options, records)
    print(markdown(table(records)))


def measure(config: RunConfig, options: argparse.Namespace, records: list[dict]) -> None:
    """Make the evaluations that the records lack, plan by plan, and append each to the file."""
    import torch

    from qra_eval.evaluators.quantized_lora import build

    if options.threads:
        torch.set_num_threads(options.threads)
    evaluator = build(config)
    space: SearchSpace = evaluator.space
    identity = {"evaluator": evaluator.describe(), "memory": options.memory, "space": space.signature}
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def keep(record: dict) -> None:
        records.append(record)
        with options.out.open("a") as file:
            file.write(json.dumps(record) + "\n")

    heads = [r for r in records if r["what"] == "setting"]
    if heads and any(heads[0][k] != v for k, v in identity.items()):
        sys.exit(f"{options.out} holds another setting: give another --out")
    if not heads:
        keep({"what": "setting", "commit": commit(), "threads": torch.get_num_threads(), **identity})
    plans = plans_of_like_size(space, resolve(space, options.memory)[0], options.plans)
    if not any(r["what"] == "prior" for r in records):
        sensitivities = evaluator.sensitivities()
        scores = prior_losses(space, sensitivities, plans)
        shared = 3 * evaluator.shared.adapter().tokens / evaluator.workbench.evaluation_tokens()
        cost = evaluator.prior_report["cost"]
        keep({"what": "prior", "cost": cost, "seconds": sensitivities.seconds, "prior": sensitivities.to_dict()})
        keep({"what": "shared", "cost": shared, "steps": config.training.shared_steps})
        for plan, score in zip(plans, scores, strict=True):
            keep({"what": "prior score", "plan": plan.key, "score": float(score)})
    done = {(r["plan"], r["fidelity"], r["seed"]) for r in records if r["what"] == "score"}
    for n, plan in enumerate(plans):
        wanted = [(f, 0) for f in evaluator.fidelities if f not in options.skip]
        wanted += [(1.0, REPLICATE)] * (n < options.replicates)
        for fidelity, seed in wanted:
            if (plan.key, fidelity, seed) in done:
                continue
            row = {"what": "score", "plan": plan.key, "fidelity": fidelity, "seed": seed}
            row |= {"memory_bytes": space.memory_bytes(plan), "loss": None}
            start = time.perf_counter()
            try:
                evaluation = evaluator.evaluate(plan, fidelity=fidelity, seed=seed)
                row |= {"loss": evaluation.loss, "cost": evaluation.charged}
            except EvaluationFailed as error:
                row["failed"] = str(error)
            keep(row | {"seconds": time.perf_counter() - start})
        print(f"{n + 1} of {len(plans)} plans", file=sys.stderr, flush=True)


def plans_of_like_size(space: SearchSpace, budget: int, count: int, seed: int = 0) -> list[Plan]:
    """`count` distinct random plans of 85 to 100% of a budget.

    They lean to bits or to rank, so they differ in how they spend the bytes.

    Raises:
        BudgetTooSmall: no plan fits.
        ValueError: too few plans of that size turned up.
    """
    levels, rng = PlanCodec(space), np.random.default_rng([seed, 0xF1DE])
    found: dict[str, Plan] = {}
    for _ in range(ATTEMPTS * count):
        plan = levels.decode(levels.repair(levels.encode([leaning_plan(space, rng)])[0], budget, rng))
        if space.memory_bytes(plan) - space.fixed_bytes >= LEAST_SHARE * (budget - space.fixed_bytes):
            found.setdefault(plan.key, plan)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"only {len(found)} of {count} distinct plans of about {budget} bytes turned up: ask for fewer")


def table(records: list[dict]) -> list[RankCorrelation]:
    """The correlation of every score with the full loss of seed 0, over the plans that have both."""
    scores = [r for r in records if r["what"] == "score" and r["loss"] is not None]
    losses: dict[tuple[float, int], dict[str, float]] = {}
    for r in scores:
        losses.setdefault((r["fidelity"], r["seed"]), {})[r["plan"]] = r["loss"]
    full = losses.get((1.0, 0), {})
    priors = {r["plan"]: r["score"] for r in records if r["what"] == "prior score"}
    costs = {r["what"]: r["cost"] for r in records if r["what"] in ("prior", "shared")}
    lowest = min((f for f, _ in losses), default=1.0)
    named = [("the prior alone", priors, 0.0)]
    for (fidelity, seed), found in sorted(losses.items()):
        name = f"fidelity {fidelity:g}" if seed == 0 else "full, another seed"
        if fidelity == lowest and costs.get("shared"):
            name = f"the shared adapter (trained once for {costs['shared']:.1f} evaluations)"
        if (fidelity, seed) != (1.0, 0):
            named.append((name, found, fidelity))
    rows = []
    for name, found, cost in named:
        both = [p for p in full if p in found]
        values = np.array([[full[p], found[p]] for p in both]).reshape(-1, 2)
        rows.append(correlation(name, values[:, 0], values[:, 1], cost))
    return rows


def correlation(name: str, full: np.ndarray, cheap: np.ndarray, cost: float, seed: int = 0) -> RankCorrelation:
    """Spearman's correlation of two (N,) with its bootstrap interval over plans; nan if fewer than three count."""
    usable = np.isfinite(full) & np.isfinite(cheap)
    full, cheap = full[usable], cheap[usable]
    n = len(full)
    if n < 3:
        return RankCorrelation(name, float("nan"), float("nan"), float("nan"), n, cost)
    rows = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    resampled = _pearson(stats.rankdata(full[rows], axis=1), stats.rankdata(cheap[rows], axis=1))
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    rho = float(_pearson(stats.rankdata(full)[None], stats.rankdata(cheap)[None])[0])
    return RankCorrelation(name, rho, float(low), float(high), n, cost)


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation (K,) of the rows of two (K, N); nan if one is constant."""
    a = a - a.mean(1, keepdims=True)
    b = b - b.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))


def markdown(rows: list[RankCorrelation]) -> str:
    """The table as Markdown."""
    lines = ["| score | cost, in full evaluations | rank correlation | 95% interval | plans |", "|---|---|---|---|---|"]
    for r in rows:
        lines.append(f"| {r.name} | {r.cost:.3g} | {r.rho:.2f} | {r.low:.2f} to {r.high:.2f} | {r.plans} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
