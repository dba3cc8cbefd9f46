"""Bytes needed for a quality: the sensitivities' plans with searched embeddings, tuned with all pieces; resumable.

    python benchmarks/study/budgets.py --data DIR --minutes 50

Each tuning is a line of `budgets.jsonl`, in the form of `pieces.jsonl`. Plans are the exact optimum of the measured
sensitivities within so many MiB, embeddings among the groups, and those that searches found (`search.py --newest`).
Beside them are uniform plans, embeddings at the same width, tuned alike, and LoRA as it is usually done: in 16 bits
with rank 32, and QLoRA's nf4 with rank 8. Every seed draws its own rows to tune on, the same for all. `--table` prints
what is there beside the 16-bit adapter of the same seeds, and searches' plans beside the sensitivities'.
"""

from __future__ import annotations

import json
import re
import time
import zlib
from collections import Counter
from typing import Any

import peft_rivals
import protocol
from budgets_table import DORA, PLANS, SENSITIVITIES, USUAL, print_table, searched_table, whole
from lines import MIB, RESULTS, read
from pieces import on_test_rows, tuned

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.sensitivities.cache import PRIOR_VERSION
from qra_eval.tasks.scoring import score_choices
from qra_search.config import QuantizationConfig, SpaceConfig, TaskConfig
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan
from qra_search.strategies.additive import additive_plan
from qra_search.surrogates.prior_table import prior_table

BUDGETS = (62, 72, 90, 50)
"""MiB, in the order of the tunings."""
EMBEDDINGS = (3, 4, 5, 6, 8, 16)
SEEDS = range(5)
"""Each draws its own rows and batches."""
ZEROS: dict[str, Any] = {
    "16-bit": protocol.BACKEND,
    "whole": {2: "gptq", 3: "gptq", 4: "gptq", 5: "reference-gptq", 6: "reference-gptq", 8: "gptq"},
}
"""How groups store their zero points: as the study's backend does, or as GPTQModel and vLLM read them."""


def evaluator(
    data: str, init: str, scales: bool, cache: str | None, zeros: str = "16-bit", task: str = "gsm8k",
    steps: int = protocol.FINETUNE.steps,
) -> QuantizedLoRAEvaluator:  # fmt: skip
    return QuantizedLoRAEvaluator(
        protocol.MODEL,
        TaskConfig(name=task, data=data),
        quantization=QuantizationConfig(backend=ZEROS[zeros], embeddings=EMBEDDINGS, cache=cache),
        space=SpaceConfig(bits=protocol.BITS, ranks=protocol.RANKS, granularity="module"),
        **protocol.settings(task, training={"init": init, "scales": scales}, finetune={"steps": steps}),
    )


def plans(made: QuantizedLoRAEvaluator) -> dict[str, Plan]:
    """By name: the sensitivities' within each budget, then uniform ones."""
    space, found = made.space, {}
    table = prior_table(space, made.sensitivities())
    for budget in BUDGETS:
        plan = additive_plan(space, table, budget * MIB)
        if plan is not None:
            found[f"{SENSITIVITIES} {budget} MiB"] = plan
    for bits in (3, 4):
        uniform = space.uniform(bits, 8)
        assert uniform is not None  # both are in the space
        found[f"uniform {bits}-bit r8"] = uniform
    return found


def searched(task: str) -> dict[str, Plan]:
    """By strategy and budget: the plans that searches handed over."""
    return {
        f"{row['search'].split('-')[1]} {row['budget']}": protocol.expanded(row)
        for row in read(RESULTS / PLANS)
        if row["search"].startswith(f"{task}-")
    }


def usual(name: str, data: str, task: str, cache: str | None, steps: int) -> tuple[QuantizedLoRAEvaluator, Plan]:
    """LoRA of one rank, on one width everywhere, as it is usually done: nothing but the adapter is trained."""
    backend, bits, rank = USUAL[name]
    made = QuantizedLoRAEvaluator(
        protocol.MODEL,
        TaskConfig(name=task, data=data),
        quantization=QuantizationConfig(backend=backend, embeddings=16, cache=cache),
        space=SpaceConfig(bits=(bits,), ranks=(rank,), granularity="module"),
        **protocol.settings(task, finetune={"steps": steps}),
    )
    plan = made.space.uniform(bits, rank)
    assert plan is not None
    return made, plan


def words(made: QuantizedLoRAEvaluator, plan: Plan) -> dict[str, Any]:
    """How many linears a plan has at each width and rank, the width of embeddings, and the numbers it trains."""
    space, backend = made.space, made.quantized.backend
    trained = 0
    for group, bits, rank in zip(space.groups, plan.bits, plan.ranks, strict=True):
        for m in group.linears:
            trained += rank * (m.out_features + m.in_features)
            if made.workbench.settings.scales and bits != UNQUANTIZED_BITS and not group.is_embedding:
                trained += backend.trainable_numbers(bits, m.out_features, m.in_features)
    linears = [i for i, group in enumerate(space.groups) if not group.is_embedding]
    return {
        "bits": {str(b): n for b, n in sorted(Counter(plan.bits[i] for i in linears).items())},
        "ranks": {str(r): n for r, n in sorted(Counter(plan.ranks[i] for i in linears).items())},
        "embeddings": [plan.bits[i] for i, group in enumerate(space.groups) if group.is_embedding],
        "trained_numbers": trained,
    }


def main() -> None:
    parser = protocol.options(__doc__, seeds=len(SEEDS))
    parser.add_argument("--init", default="default", help="where adapters start")
    parser.add_argument("--steps", type=int, default=protocol.FINETUNE.steps, help="of the tuning")
    parser.add_argument("--no-scales", action="store_true", help="leave scales and offsets as they were fitted")
    parser.add_argument("--task", choices=protocol.TASKS, default="gsm8k")
    parser.add_argument("--zeros", choices=ZEROS, default="16-bit", help="how groups store their zero points")
    parser.add_argument("--only", default="", help="only plans in whose name this regular expression is found")
    options = parser.parse_args()
    gsm8k = options.task == "gsm8k"
    path = options.out / ("budgets.jsonl" if gsm8k else f"budgets-{options.task}.jsonl")
    if options.table:
        print_table(read(path), read(RESULTS / "final.jsonl") if gsm8k else [])
        print("", *searched_table(read(path)), sep="\n")
        return
    until, commit = protocol.begin(parser, options)
    fixed = (options.cache, options.zeros, options.task, options.steps)
    made = evaluator(options.data, options.init, not options.no_scales, *fixed)
    found = searched(options.task)
    sides = {name: (made, plan) for name, plan in (plans(made) | found).items()}
    sides |= {
        name: usual(name, options.data, options.task, options.cache, options.steps)
        for name in USUAL
        if gsm8k or name != DORA
    }
    for seed in SEEDS[: options.seeds]:
        for name, (side, plan) in sides.items():
            key = {"plan": name, "seed": seed, "own_rows": True, "steps": options.steps}
            if name not in USUAL:
                key |= {"init": options.init, "scales": not options.no_scales, "zeros": options.zeros}
                key["prior"] = PRIOR_VERSION
            if name in found:
                key["choices"] = zlib.crc32(plan.key.encode())
            if not re.search(options.only, name) or like(key, read(path)):
                continue
            if until is not None and time.monotonic() > until:
                raise SystemExit(protocol.LEFT)
            # A search may hand over one plan for two budgets: it is tuned once.
            line = like({k: v for k, v in key.items() if k != "plan"}, read(path)) if name in found else None
            if line is None:
                figures = tuned_dora(side, plan, seed) if name == DORA else tuned(side, plan, seed)
                line = {**words(side, plan), **figures, "commit": commit}
                line |= {} if gsm8k else {"row_right": right(side)}
            line = {**line, **key}
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"seed {seed}  {name}: {line['memory_bytes'] / MIB:.1f} MiB, {line['test_loss']:.4f}", flush=True)


def like(key: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first line that says the same; None if there is none."""
    return next((line for line in lines if key.items() <= whole(line).items()), None)


def tuned_dora(made: QuantizedLoRAEvaluator, plan: Plan, seed: int) -> dict[str, Any]:
    """The final tuning of a uniform plan by PEFT's DoRA, in the form of `pieces.tuned`."""
    start = time.perf_counter()
    model, trained = peft_rivals.dora(made, plan.bits[0], plan.ranks[0], seed)
    scales = sum(p.numel() for n, p in model.named_parameters() if "magnitude" in n)
    return {
        **on_test_rows(made, model),
        "train_loss": round(trained.loss, 5),
        "memory_bytes": made.space.memory_bytes(plan) + 2 * scales,
        "compute": str(made.quantized.compute).removeprefix("torch."),
        "seconds": round(time.perf_counter() - start, 1),
        "trained_numbers": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def right(made: QuantizedLoRAEvaluator) -> list[int]:
    """Whether the likeliest choice of each test row is the right one, by the plan in place: 1 or 0."""
    bench = made.workbench
    rows = bench.rows.task.split("test")[: bench.finetune.test_rows]
    scores = score_choices(bench.model, bench.tokenizer, rows, batch_size=16)
    return (scores.margins > 0).astype(int).tolist()


if __name__ == "__main__":
    main()
