"""Searches of the study: every strategy on the same evaluator, budgets and number of evaluations; resumable.

    python benchmarks/study/search.py --data DIR --strategy qra --minutes 50
    python benchmarks/study/search.py --data DIR --strategy sensitivity    # the prior's own plans: nothing is tuned
    python benchmarks/study/search.py --data DIR --ranks 8                 # bits alone; --bits 4: ranks alone
    python benchmarks/study/search.py --data DIR --newest                  # the round of budgets.py: embeddings, scales

The log lies in runs/study; after every piece it is exported as JSONL beside the results, and the plans that the
strategy would hand over at each budget are written to `plans.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import protocol
import torch
from budgets import BUDGETS
from budgets import evaluator as with_all_pieces
from budgets_table import PLANS
from lines import MIB, RESULTS, read

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.log.trial import Trial
from qra_search.log.trial_log import TrialLog
from qra_search.strategies import make_strategy
from qra_search.strategies.additive import additive_plan
from qra_search.study.study import Callback, Study
from qra_search.surrogates.prior_table import flat_prior, prior_table

SENSITIVITY = "sensitivity"


class Pieces(Callback):
    """Ends the study in time for this piece to end, and says what came of every evaluation."""

    def __init__(self, minutes: float | None):
        self.until = None if minutes is None else time.monotonic() + 60 * minutes
        self.broke_off = False

    def finished(self, study: Study, trial: Trial) -> None:
        print(f"{trial.id:3} {trial.proposal.origin:8} {trial.loss:.4f} {trial.evaluation.memory_bytes / 2**20:.2f} MiB"
              if trial.evaluation else f"{trial.id:3} failed: {trial.reason}", flush=True)  # fmt: skip
        if self.until is not None and time.monotonic() > self.until:
            self.broke_off = True
            study.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=protocol.data_folder, help="folder with gsm8k_train.jsonl")
    parser.add_argument("--task", default="gsm8k")
    parser.add_argument("--strategy", default="qra")
    parser.add_argument("--granularity", default="module", choices=["module", "layer", "fused"])
    parser.add_argument("--short", action="store_true", help="evaluations of 3 steps and 16 rows instead")
    parser.add_argument("--wide", action="store_true", help="evaluations of 8 steps and 96 rows instead")
    parser.add_argument("--bits", type=int, nargs="+", help="search over these only")
    parser.add_argument("--ranks", type=int, nargs="+", help="search over these only")
    parser.add_argument("--embeddings", type=int, default=16, choices=[8, 16])
    parser.add_argument("--low", action="store_true", help="budgets from uniform 2-bit to 3-bit instead")
    parser.add_argument("--newest", action="store_true", help="the round of budgets.py: embeddings, scales")
    parser.add_argument("--flat", action="store_true", help="without a measured prior: larger linears matter more")
    parser.add_argument("--seeds", type=int, default=1, help="evaluate with so many seeds in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluations", type=float, default=protocol.EVALUATIONS)
    parser.add_argument("--minutes", type=float, help="begin no evaluation after so many minutes; run again to go on")
    parser.add_argument("--threads", type=int, default=1, help="of torch; the same number gives the same losses")
    parser.add_argument("--cache", help="folder of the bank")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--logs", type=Path, default=Path("runs/study"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    name = f"{options.task}-{options.strategy.replace(':', '_')}-{options.granularity}-{options.seed}"
    name += "-short" * options.short + "-wide" * options.wide + "-flat" * options.flat
    name += f"-s{options.seeds}" * (options.seeds > 1)
    name += f"-e{options.embeddings}" * (options.embeddings != 16) + "-low" * options.low + "-newest" * options.newest
    for letter, some in (("b", options.bits), ("r", options.ranks)):
        name += f"-{letter}{'.'.join(map(str, some))}" if some else ""
    options.logs.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.newest:
        evaluator = with_all_pieces(options.data, "default", True, options.cache, task=options.task)
        budgets = {f"{budget} MiB": budget * MIB for budget in BUDGETS[:3]}
    else:
        evaluator = protocol.evaluator(
            options.task,
            options.data,
            bits=tuple(options.bits or protocol.BITS),
            ranks=tuple(options.ranks or protocol.RANKS),
            granularity=options.granularity,
            embeddings=options.embeddings,
            evaluation=protocol.SHORT if options.short else protocol.WIDE if options.wide else None,
            cache=options.cache,
        )
        budgets = protocol.budgets(options.task, options.data, low=options.low)
    least = evaluator.space.memory.minimum
    budgets = {label: budget for label, budget in budgets.items() if budget >= least}
    plans = options.out / (PLANS if options.newest else "plans.jsonl")
    if options.strategy == SENSITIVITY:
        rows = [{**row, "embeddings": options.embeddings} for row in by_sensitivity(evaluator, budgets, name)]
        keep(plans, name, rows)
        return
    log = TrialLog(options.logs / f"{name}.jsonl")
    pieces = Pieces(options.minutes)
    study = Study(
        evaluator,
        strategy=make_strategy(options.strategy, **({"seeds": options.seeds} if options.seeds > 1 else {})),
        evaluations=options.evaluations,
        memory_budget=list(budgets.values()),
        seed=options.seed,
        log=log,
        callbacks=[pieces],
        sensitivities=flat_prior(evaluator.space) if options.flat else None,
    )
    result = study.run()
    kept = options.out / f"trials-{name}.jsonl"
    written = Path(log.path).read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(line for line in written if not line.startswith(b'{"writer"')))  # without the host's name
    forwards = result.spent * evaluator.workbench.evaluation_tokens()  # of this search's own evaluations
    epoch = epoch_forwards(evaluator)
    rows = []
    for label, budget in budgets.items():
        best = result.best(budget)
        if best is not None:
            rows.append(
                {
                    "search": name,
                    "budget": label,
                    "limit": budget,
                    "memory_bytes": best.memory_bytes,
                    "loss": round(best.loss, 5),
                    "observed": round(best.observed, 5),
                    "spent": result.spent,
                    "prior_cost": evaluator.prior_report.get("cost")
                    or (result.sensitivities.cost if result.sensitivities else 0.0),
                    "epoch_share": round(forwards / epoch, 4),
                    "compute": str(evaluator.quantized.compute).removeprefix("torch."),
                    "embeddings": options.embeddings,
                    **protocol.compact(protocol.by_linear(evaluator.space, best.plan)),
                }
            )
            print(f"{label:8} {best.memory_bytes / 2**20:7.2f} MiB  {best.loss:.4f}  {best.plan}", flush=True)
    keep(plans, name, rows)
    print(f"{result.spent:.1f} evaluations spent, {forwards / epoch:.3f} of an epoch", flush=True)
    if pieces.broke_off:
        raise SystemExit(protocol.LEFT)


def keep(path: Path, name: str, rows: list[dict]) -> None:
    """Write a search's plans in place of those that it had before."""
    kept = [row for row in read(path) if row["search"] != name]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*kept, *rows]))


def by_sensitivity(evaluator: QuantizedLoRAEvaluator, budgets: dict[str, int], name: str) -> list[dict]:
    """The best plans if the prior were true, as post-training mixed precision would choose: no tuning in the loop."""
    space, sensitivities = evaluator.space, evaluator.sensitivities()
    rows = []
    for label, budget in budgets.items():
        plan = additive_plan(space, prior_table(space, sensitivities), budget)
        assert plan is not None
        row = {"search": name, "budget": label, "limit": budget, "memory_bytes": space.memory_bytes(plan)}
        row |= {"loss": None, "spent": sensitivities.cost, "prior_cost": sensitivities.cost}
        row |= {
            "epoch_share": round(
                sensitivities.cost * evaluator.workbench.evaluation_tokens() / epoch_forwards(evaluator), 4
            )
        }
        rows.append(row | protocol.compact(protocol.by_linear(space, plan)))
        print(f"{label:8} {space.memory_bytes(plan) / 2**20:7.2f} MiB  {plan}", flush=True)
    return rows


def epoch_forwards(evaluator: QuantizedLoRAEvaluator) -> float:
    """Forward passes over a token that an epoch of fine-tuning costs."""
    return protocol.EPOCH_FORWARDS * sum(map(len, evaluator.rows("calibration", 1 << 30)))


if __name__ == "__main__":
    main()
