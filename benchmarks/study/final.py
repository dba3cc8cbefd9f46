"""Final tunings of the study: every plan found and every uniform rival, three seeds each, on test rows; resumable.

    python benchmarks/study/final.py --data DIR --minutes 50

Each tuning is a line of `final.jsonl`: who, seed, bytes, and loss and tokens of every test row. Rows of the same test
split are in the same order everywhere, so that comparisons are paired. Found plans and their closest rivals come
first, with every seed; then more rivals.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import peft_rivals
import protocol
from lines import read

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.tasks.losses import row_losses
from qra_eval.tuning.training import Trained
from qra_search.space.space import Plan


def jobs(path: Path, task: str, source: str) -> list[tuple[int, str, str, int, int, Plan | protocol.Uniform]]:
    """(seed, name, backend, bits of embeddings, bit-width or 0 where mixed, plan) of all that is tuned, in order."""
    of = "" if source == task else f"{source}'s "
    mine = [
        (
            f"{of}{row['search'].removeprefix(source + '-')} @ {row['budget']}",
            protocol.BACKEND,
            row.get("embeddings", 16),
            0,
            protocol.expanded(row),
        )
        for row in sorted(read(path), key=lambda row: row.get("embeddings", 16), reverse=True)  # loads fewer models
        if row["search"].startswith(f"{source}-")
    ]
    first, more = (
        [(u.name, u.backend, u.embeddings, u.bits, u) for u in some] for some in (protocol.UNIFORM, protocol.MORE)
    )
    return [(seed, *row) for rows in (mine + first, more) for seed in protocol.SEEDS for row in rows]


def tuned(evaluator: QuantizedLoRAEvaluator, plan: Plan, seed: int, init: str = "default") -> tuple[Any, Trained]:
    """The model after a plan's final tuning under the evaluator's settings, and what was seen of it."""
    if init == "adalora":
        return peft_rivals.adalora(evaluator, plan.bits[0], plan.ranks[0], seed)
    evaluator.workbench.init = init
    evaluator.workbench.apply(plan, seed)
    return evaluator.workbench.model, evaluator.workbench.train(evaluator.workbench.finetune.steps, seed)


def main() -> None:
    parser = protocol.options(__doc__, seeds=len(protocol.SEEDS))
    parser.add_argument("--task", default="gsm8k")
    parser.add_argument(
        "--plans-of", metavar="TASK", help="tune the plans found on this task instead: what carries over"
    )
    parser.add_argument("--steps", type=int, help="tune for so many instead, into final-STEPS.jsonl")
    parser.add_argument("--only", default="", help="only rows in whose name this regular expression is found")
    parser.add_argument("--backwards", action="store_true", help="the least telling first: for a second process")
    options = parser.parse_args()
    until, commit = protocol.begin(parser, options)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / (f"final-{options.steps}.jsonl" if options.steps else "final.jsonl")
    evaluators: dict[str, object] = {}
    todo = jobs(options.out / "plans.jsonl", options.task, options.plans_of or options.task)
    for seed, name, backend, embeddings, bits, plan in reversed(todo) if options.backwards else todo:
        if any(d["task"] == options.task and d["row"] == name and d["seed"] == seed for d in read(path)):
            continue
        if not re.search(options.only, name) or seed not in protocol.SEEDS[: options.seeds]:
            continue
        if until is not None and time.monotonic() > until:
            raise SystemExit(protocol.LEFT)
        widths = (2, 3, 4, 8, 16) if backend == protocol.BACKEND else (bits,)
        key = f"{backend}:{widths}:{embeddings}"
        if key not in evaluators:
            evaluators.clear()  # one model at a time
            evaluators[key] = protocol.evaluator(
                options.task,
                options.data,
                backend=backend,
                bits=widths,
                ranks=(2, 4, 8, 16, 32),
                embeddings=embeddings,
                cache=options.cache,
            )
        evaluator = evaluators[key]
        start = time.perf_counter()
        uniform = isinstance(plan, protocol.Uniform)
        chosen = evaluator.space.uniform(plan.bits, plan.rank) if uniform else plan
        settings = protocol.settings(
            options.task,
            training={"learning_rate": plan.rate} if uniform and plan.rate is not None else {},
            finetune={"steps": options.steps} if options.steps else {},
        )
        evaluator.quantized.settings, evaluator.workbench.finetune = settings["training"], settings["finetune"]
        test = evaluator.rows("test", settings["finetune"].test_rows)
        model, trained = tuned(evaluator, chosen, seed, plan.init if uniform else "default")
        losses, tokens = row_losses(model, test, 8, evaluator.workbench.device)
        line = {
            "task": options.task,
            "row": name,
            "seed": seed,
            "test_loss": round(sum(losses) / sum(tokens), 5),
            "train_loss": round(trained.loss, 5),
            "memory_bytes": evaluator.space.memory_bytes(chosen),
            "backend": backend,
            "compute": str(evaluator.quantized.compute).removeprefix("torch."),
            "trained_tokens": trained.tokens,
            "seconds": round(time.perf_counter() - start, 1),
            "commit": commit,
            "row_losses": [round(x, 4) for x in losses],
            "row_tokens": tokens,
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        size = line["memory_bytes"] / 2**20
        print(f"seed {seed}  {name:28} {size:7.2f} MiB  {line['test_loss']:.4f}", flush=True)


if __name__ == "__main__":
    main()
