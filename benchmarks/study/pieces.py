"""What each piece beside the allocation brings, at no bytes: polish, start of the adapters (alone, or fitted in turn
with the bases), trained scales; resumable.

    python benchmarks/study/pieces.py --data DIR --minutes 50

Each tuning is a line of `pieces.jsonl`: plan, pieces, seed, bytes, and loss and tokens of every test row, in the form
of `final.jsonl`. All variants of a plan are tuned with the first seed before any with the next.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import protocol
from lines import MIB, RESULTS, change, read
from torch import nn

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.tasks.losses import row_losses
from qra_search.config import QuantizationConfig, SpaceConfig, TaskConfig
from qra_search.space.space import Plan, SearchSpace

SEEDS = 5
"""Each but the first draws its own rows; the first has those of an evaluation."""
FOUND = "sensitivity-module-0-low"
"""The search whose plan spares what is sensitive, at the bytes between uniform 2 and 3 bits."""


@dataclass(frozen=True)
class Pieces:
    """Which pieces are in a tuning."""

    name: str
    polish: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    ranks: tuple[int, ...] = protocol.RANKS
    """Of the space: in turn, the least is taken out of the bases."""

    @property
    def backend(self) -> dict[int, Any]:
        """The study's, with or without polish."""
        gptq = {"name": "reference-gptq", "polish": self.polish}
        return {2: gptq, 3: gptq, 4: gptq, 8: "bitsandbytes-int8"}


CALIBRATED, IN_TURN = ("init", "calibrated"), ("init", "caldera")
LAST = (IN_TURN, ("scales", True))
RATES = (0.001, 0.002, 0.003)
"""Of the adapters, to be judged by the loss on validation rows, which older lines lack; all others have 0.002."""
VARIANTS = (
    Pieces("plain"),
    Pieces("polish", 2),
    Pieces("start", 0, (CALIBRATED,)),
    Pieces("polish, start", 2, (CALIBRATED,)),
    Pieces("scales", 0, (("scales", True),)),
    Pieces("polish, start, scales", 2, (CALIBRATED, ("scales", True))),
    Pieces("polish, in turn", 2, (IN_TURN,)),
    Pieces("polish, in turn, scales", 2, (IN_TURN, ("scales", True))),
    Pieces("polish, in turn at rank 8", 2, (IN_TURN,), (8,)),
    Pieces("polish, in turn at rank 8, scales", 2, LAST, (8,)),
    *(
        Pieces(f"polish, in turn at rank 8, scales, at {rate}", 2, (*LAST, ("learning_rate", rate)), (8,))
        for rate in RATES
    ),
)


def plans(space: SearchSpace, out: Path) -> dict[str, Plan]:
    """By name, the most telling first: uniform ones of rank 8, and a found one with two ranks."""
    spared = protocol.expanded(
        next(d for d in read(out / "plans.jsonl") if d["search"] == f"gsm8k-{FOUND}" and d["budget"] == "2.5-bit")
    )
    return {
        "2-bit r8": space.uniform(2, 8),
        "spared r2": spared,
        "4-bit r8": space.uniform(4, 8),
        "3-bit r8": space.uniform(3, 8),
    }


def evaluator(data: str, pieces: Pieces, cache: str | None) -> QuantizedLoRAEvaluator:
    return QuantizedLoRAEvaluator(
        protocol.MODEL,
        TaskConfig(name="gsm8k", data=data),
        quantization=QuantizationConfig(backend=pieces.backend, embeddings=16, cache=cache),
        space=SpaceConfig(bits=protocol.BITS, ranks=pieces.ranks, granularity="module"),
        **protocol.settings("gsm8k", training=dict(pieces.options)),
    )


def main() -> None:
    parser = protocol.options(__doc__, seeds=SEEDS)
    parser.add_argument(
        "--only", default="", help="only lines in whose `plan: pieces` this regular expression is found"
    )
    options = parser.parse_args()
    path = options.out / "pieces.jsonl"
    if options.table:
        print_table(read(path))
        return
    until, commit = protocol.begin(parser, options)
    made: dict[str, QuantizedLoRAEvaluator] = {}
    first = evaluator(options.data, VARIANTS[0], options.cache)
    for seed in range(options.seeds):
        for plan_name, plan in plans(first.space, RESULTS).items():
            for pieces in VARIANTS:
                key = (plan_name, pieces.name, seed)
                if any((d["plan"], d["pieces"], d["seed"]) == key for d in read(path)):
                    continue
                if not set(plan.ranks) <= set(pieces.ranks):
                    continue
                if not re.search(options.only, f"{plan_name}: {pieces.name}"):
                    continue
                if until is not None and time.monotonic() > until:
                    raise SystemExit(protocol.LEFT)
                if pieces.name not in made:
                    made.clear()  # one model at a time
                    made[pieces.name] = evaluator(options.data, pieces, options.cache)
                line = tuned(made[pieces.name], plan, seed)
                line = {"plan": plan_name, "pieces": pieces.name, "seed": seed, **line, "commit": commit}
                with path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"seed {seed}  {plan_name}: {pieces.name:24} {line['test_loss']:.4f}", flush=True)


def print_table(lines: list[dict[str, Any]]) -> None:
    """Mean test loss of each plan with some pieces, and the change from the same plan without any of them."""
    print("| plan | pieces | MiB | seeds | test loss | against none, same seeds |\n|" + "---|" * 6)
    for plan, name in dict.fromkeys((d["plan"], d["pieces"]) for d in sorted(lines, key=lambda d: d["plan"])):
        mine, plain = ({d["seed"]: d for d in lines if (d["plan"], d["pieces"]) == (plan, n)} for n in (name, "plain"))
        both = [seed for seed in mine if seed in plain]
        beside = change([mine[s] for s in both], [plain[s] for s in both]) if name != "plain" else "–"
        size, mean = next(iter(mine.values()))["memory_bytes"] / MIB, sum(d["test_loss"] for d in mine.values())
        print(f"| {plan} | {name} | {size:.1f} | {len(mine)} | {mean / len(mine):.4f} | {beside} ({len(both)}) |")


def tuned(evaluator: QuantizedLoRAEvaluator, plan: Plan, seed: int) -> dict[str, Any]:
    """The final tuning of a plan, measured on the test rows."""
    bench = evaluator.workbench
    start = time.perf_counter()
    evaluator.quantized.prepare()
    prepared = time.perf_counter()
    bench.apply(plan, seed)
    found = measured(evaluator, seed)
    return {
        **found,
        "memory_bytes": evaluator.space.memory_bytes(plan),
        "compute": str(evaluator.quantized.compute).removeprefix("torch."),
        "quantize_seconds": round(prepared - start, 1),
        "seconds": round(time.perf_counter() - prepared, 1),
    }


def measured(evaluator: QuantizedLoRAEvaluator, seed: int) -> dict[str, Any]:
    """The final tuning of the plan in place, measured on the test rows."""
    bench = evaluator.workbench
    untuned = bench.held_out("validation", bench.evaluation.validation_rows)
    steps = bench.finetune.steps
    trained = bench.train(steps, seed, batches=bench.final_batches(steps, seed))
    facts = {"train_loss": round(trained.loss, 5), "untuned_validation_loss": round(untuned, 5)}
    facts["validation_loss"] = round(bench.held_out("validation", bench.evaluation.validation_rows), 5)
    return {**on_test_rows(evaluator), **facts, "train_seconds": round(trained.seconds, 1)}


def on_test_rows(evaluator: QuantizedLoRAEvaluator, model: nn.Module | None = None) -> dict[str, Any]:
    """Loss a token of a model, the one in place unless another is given, and loss and tokens of every row."""
    bench = evaluator.workbench
    losses, tokens = row_losses(model or bench.model, bench.rows("test", bench.finetune.test_rows), 8, bench.device)
    rows = {"row_losses": [round(x, 4) for x in losses], "row_tokens": tokens}
    return {"test_loss": round(sum(losses) / sum(tokens), 5), **rows}


if __name__ == "__main__":
    main()
