"""Searches of the study: every strategy on the same evaluator, budgets and number of evaluations; resumable.

    python -m benchmarks.study.search --data DIR --strategy qra --minutes 50
    python -m benchmarks.study.search --data DIR --strategy sensitivity    # the sensitivities' plans: nothing is tuned
    python -m benchmarks.study.search --data DIR --ranks 8                 # bits alone; --bits 4: ranks alone
    python -m benchmarks.study.search --data DIR --newest                  # the round of budgets.py: embeddings, scales

The log lies in runs/study. Each time this ends, the log is copied beside the results, and the plans that the strategy
would hand over at each budget are written to `plans.jsonl` (`plans-newest.jsonl`).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import MIB, read
from benchmarks.study import protocol
from benchmarks.study.budgets import BUDGETS
from benchmarks.study.budgets import evaluator as with_all_pieces
from benchmarks.study.budgets_table import PLANS
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.log.trial import Trial
from qra_search.log.trial_log import TrialLog
from qra_search.space.space import Plan
from qra_search.strategies import make_strategy
from qra_search.strategies.additive import additive_plan
from qra_search.study.study import Callback, Study
from qra_search.surrogates.sensitivity_table import sensitivity_table

SENSITIVITY = "sensitivity"


class InTime(Callback):
    """Ends the study after so many minutes, and prints what came of every evaluation."""

    def __init__(self, minutes: float | None):
        self.until = None if minutes is None else time.monotonic() + 60 * minutes
        self.broke_off = False

    def finished(self, study: Study, trial: Trial) -> None:
        if trial.evaluation is None:
            print(f"{trial.id:3} failed: {trial.reason}", flush=True)
        else:
            size = trial.evaluation.memory_bytes / MIB
            print(f"{trial.id:3} {trial.proposal.origin:8} {trial.loss:.4f} {size:.2f} MiB", flush=True)
        if self.until is not None and time.monotonic() > self.until:
            self.broke_off = True
            study.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=protocol.data_folder, help="folder with gsm8k_train.jsonl")
    parser.add_argument("--task", choices=protocol.TASKS, default="gsm8k")
    parser.add_argument("--strategy", default="qra")
    parser.add_argument("--granularity", default="module", choices=["module", "layer", "fused"])
    parser.add_argument("--bits", type=int, nargs="+", help="search over these only")
    parser.add_argument("--ranks", type=int, nargs="+", help="search over these only")
    parser.add_argument("--embeddings", type=int, default=16, choices=[8, 16])
    parser.add_argument("--low", action="store_true", help="budgets from uniform 2-bit to 3-bit instead")
    parser.add_argument("--newest", action="store_true", help="the round of budgets.py: embeddings, scales")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluations", type=float, default=protocol.EVALUATIONS)
    parser.add_argument("--minutes", type=float, help="begin no evaluation after so many minutes; run again to go on")
    parser.add_argument("--threads", type=int, default=1, help="of torch; the same number gives the same losses")
    parser.add_argument("--cache", help="folder of the cache of quantized weights")
    parser.add_argument("--out", type=Path, default=protocol.RESULTS)
    parser.add_argument("--logs", type=Path, default=Path("runs/study"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    evaluator, budgets = setting(options)
    name, plans = name_of(options), options.out / (PLANS if options.newest else "plans.jsonl")
    if options.strategy == SENSITIVITY:
        keep(plans, name, by_sensitivity(evaluator, budgets, name, options.embeddings))
        return
    options.logs.mkdir(parents=True, exist_ok=True)
    log, in_time = TrialLog(options.logs / f"{name}.jsonl"), InTime(options.minutes)
    study = Study(
        evaluator,
        strategy=make_strategy(options.strategy),
        evaluations=options.evaluations,
        memory_budget=list(budgets.values()),
        seed=options.seed,
        log=log,
        callbacks=[in_time],
        charged=True,
    )
    result = study.run()
    options.out.mkdir(parents=True, exist_ok=True)
    written = Path(log.path).read_bytes().splitlines(keepends=True)
    kept = [line for line in written if not line.startswith(b'{"writer"')]  # without the host's name
    (options.out / f"trials-{name}.jsonl").write_bytes(b"".join(kept))
    share = epoch_share(evaluator, result.spent)
    prior_cost = result.sensitivities.cost if result.sensitivities else 0.0
    rows = []
    for label, budget in budgets.items():
        best = result.best(budget)
        if best is not None:
            row = {"search": name, "budget": label, "limit": budget, "memory_bytes": best.memory_bytes}
            row |= {"loss": round(best.loss, 5), "observed": round(best.observed, 5), "spent": result.spent}
            row |= {"prior_cost": evaluator.sensitivities_report.get("cost") or prior_cost, "epoch_share": share}
            row |= {"compute": str(evaluator.quantized.compute).removeprefix("torch.")}
            rows.append(row | {"embeddings": options.embeddings, **plan_by_linear(evaluator, best.plan)})
            print(f"{label:8} {best.memory_bytes / MIB:7.2f} MiB  {best.loss:.4f}  {best.plan}", flush=True)
    keep(plans, name, rows)
    print(f"{result.spent:.1f} evaluations spent, {share:.3f} of an epoch", flush=True)
    if in_time.broke_off:
        raise SystemExit(protocol.LEFT)


def name_of(options: argparse.Namespace) -> str:
    """Of the search: task, strategy, granularity, seed, and what is not as usual."""
    name = f"{options.task}-{options.strategy.replace(':', '_')}-{options.granularity}-{options.seed}"
    name += f"-e{options.embeddings}" * (options.embeddings != 16) + "-low" * options.low + "-newest" * options.newest
    for letter, some in (("b", options.bits), ("r", options.ranks)):
        name += f"-{letter}{'.'.join(map(str, some))}" if some else ""
    return name


def setting(options: argparse.Namespace) -> tuple[QuantizedLoRAEvaluator, dict[str, int]]:
    """The evaluator, and the budgets that any plan fits."""
    if options.newest:
        training = {"scales": True}
        evaluator = with_all_pieces(options.data, options.cache, task=options.task, training=training)
        budgets = {f"{budget} MiB": budget * MIB for budget in BUDGETS[:3]}
    else:
        evaluator = protocol.evaluator(
            options.task,
            options.data,
            bits=tuple(options.bits or protocol.BITS),
            ranks=tuple(options.ranks or protocol.RANKS),
            granularity=options.granularity,
            embeddings=options.embeddings,
            cache=options.cache,
        )
        budgets = protocol.budgets(options.task, options.data, low=options.low)
    least = evaluator.space.memory.minimum
    return evaluator, {label: budget for label, budget in budgets.items() if budget >= least}


def keep(path: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Write a search's plans in place of those that it had before."""
    kept = [row for row in read(path) if row["search"] != name]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in [*kept, *rows]))


def by_sensitivity(
    evaluator: QuantizedLoRAEvaluator, budgets: dict[str, int], name: str, embeddings: int
) -> list[dict[str, Any]]:
    """The best plans if the sensitivities were true, as post-training mixed precision chooses: nothing is tuned."""
    space, sensitivities = evaluator.space, evaluator.sensitivities()
    rows = []
    for label, budget in budgets.items():
        plan = additive_plan(space, sensitivity_table(space, sensitivities), budget)
        assert plan is not None
        row = {"search": name, "budget": label, "limit": budget, "memory_bytes": space.memory_bytes(plan)}
        row |= {"loss": None, "spent": sensitivities.cost, "prior_cost": sensitivities.cost}
        row |= {"epoch_share": epoch_share(evaluator, sensitivities.cost), **plan_by_linear(evaluator, plan)}
        rows.append(row | {"embeddings": embeddings})
        print(f"{label:8} {space.memory_bytes(plan) / MIB:7.2f} MiB  {plan}", flush=True)
    return rows


def plan_by_linear(evaluator: QuantizedLoRAEvaluator, plan: Plan) -> dict[str, str]:
    return protocol.compact(protocol.by_linear(evaluator.space, plan))


def epoch_share(evaluator: QuantizedLoRAEvaluator, evaluations: float) -> float:
    """What so many evaluations cost, in epochs of fine-tuning."""
    epoch = protocol.EPOCH_FORWARDS * sum(map(len, evaluator.rows("calibration", 1 << 30)))
    return round(evaluations * evaluator.tuner.evaluation_tokens() / epoch, 4)


if __name__ == "__main__":
    main()
