"""Bytes needed for a quality: the sensitivities' plans with searched embeddings, tuned with scales; resumable.

    python -m benchmarks.study.budgets --data DIR --minutes 50

Each tuning is a line of `budgets.jsonl`. Plans are the exact optimum of the measured sensitivities within so many MiB,
embeddings among the groups, and within the bytes of a uniform plan: what choosing by layer brings, all else alike.
Beside them are uniform plans, and LoRA as it is usually done: in 16 bits with rank 32, and QLoRA's nf4 with rank 8.
Every seed draws its own rows to tune on, the same for all plans. `--table` prints what is there (`budgets_table.py`).

With `--stored halves` 2.5 and 3.5 bits may be chosen too. With `gptq` weights are stored as by the default until
trellis codes were, and the plans that searches found (`search.py --newest`) are tuned too.
"""

from __future__ import annotations

import zlib
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import MIB, read
from benchmarks.study import protocol
from benchmarks.study.budgets_table import (
    ISOLATED,
    NF4,
    PLANS,
    REFERENCE,
    SENSITIVITIES,
    USUAL,
    searched_table,
    table,
    whole,
)
from benchmarks.study.protocol import Job, like
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.sensitivities.cache import SENSITIVITIES_VERSION
from qra_eval.tasks.scoring import score_choices
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan
from qra_search.strategies.additive import additive_plan
from qra_search.surrogates.sensitivity_table import sensitivity_table

BUDGETS = {"trellis": (62, 56, 47, 72, 80), "halves": (47, 56, 62)}
OTHER_BUDGETS = (62, 72, 90, 50)
"""MiB, in the order of the tunings, by how weights are stored."""
EMBEDDINGS = (3, 4, 5, 6, 8, 16)
SEEDS = range(5)
"""Each draws its own rows and batches."""
STORED: dict[str, Any] = {
    "trellis": "mixed-calibrated",
    "halves": {
        2: "trellis-halves",
        3: "trellis-halves",
        4: "trellis",
        5: "trellis",
        6: "reference-gptq",
        8: "bitsandbytes-int8",
    },
    "gptq": protocol.BACKEND,
}


def main() -> None:
    parser = protocol.options(__doc__, seeds=len(SEEDS))
    parser.add_argument("--steps", type=int, default=protocol.FINETUNE.steps, help="of the tuning")
    parser.add_argument("--no-scales", action="store_true", help="leave scales and offsets as they were fitted")
    parser.add_argument("--task", choices=protocol.TASKS, default="gsm8k")
    parser.add_argument("--stored", choices=STORED, default="trellis", help="how weights are")
    options = parser.parse_args()
    gsm8k = options.task == "gsm8k"
    path = options.out / ("budgets.jsonl" if gsm8k else f"budgets-{options.task}.jsonl")
    if options.table:
        final = read(protocol.RESULTS / "final.jsonl") if gsm8k else []
        print(*table(read(path), final), "", *searched_table(read(path)), sep="\n")
        return
    until = protocol.begin(parser, options)
    protocol.measure(path, jobs(options, path), until, only=options.only, whole=whole)


def jobs(options: Namespace, path: Path) -> Iterator[tuple[str, Job]]:
    """All tunings, seed by seed."""
    made = evaluator(
        options.data, options.cache, options.stored, options.task,
        training={"scales": not options.no_scales}, finetune={"steps": options.steps},
    )  # fmt: skip
    found = searched(options.task) if options.stored == "gptq" else {}
    sides = {REFERENCE: usual(REFERENCE, options.data, options.task, options.cache, options.steps)}
    sides |= {name: (made, plan) for name, plan in (plans(made, options.stored) | found).items()}
    names = [name for name in (USUAL if found else (NF4,)) if name != REFERENCE]
    sides |= {name: usual(name, options.data, options.task, options.cache, options.steps) for name in names}
    for seed in SEEDS[: options.seeds]:
        for name, (side, plan) in sides.items():
            key = {"plan": name, "seed": seed, "own_rows": True, "steps": options.steps, "compute": protocol.COMPUTE}
            if name not in USUAL:
                key |= {"init": "default", "scales": not options.no_scales, "stored": options.stored}
                key["prior"] = SENSITIVITIES_VERSION
            if name in found:
                key["choices"] = zlib.crc32(plan.key.encode())
            earlier = path if name in found else None
            yield name, (key, partial(figures, side, plan, key, earlier, options.task))


def figures(
    side: QuantizedLoRAEvaluator, plan: Plan, key: dict[str, Any], earlier: Path | None, task: str
) -> dict[str, Any]:
    """What is measured of a plan. A search may hand over one plan for two budgets: it is tuned once.

    Args:
        earlier: lines among which the plan may be under another name; None: it has no other name.
    """
    choices = {name: value for name, value in key.items() if name != "plan"}
    if earlier is not None and (line := like(choices, map(whole, read(earlier)))) is not None:
        return line
    line = {**words(side, plan), **protocol.tuned(side, plan, key["seed"])}
    return line if task == "gsm8k" else {**line, "row_right": right(side)}


def evaluator(
    data: str, cache: str | None = None, stored: str = "trellis", task: str = "gsm8k", **changes: dict[str, Any]
) -> QuantizedLoRAEvaluator:
    """Of searched plans: embeddings are among the groups."""
    return protocol.evaluator(task, data, backend=STORED[stored], embeddings=EMBEDDINGS, cache=cache, **changes)


def plans(made: QuantizedLoRAEvaluator, stored: str) -> dict[str, Plan]:
    """By name: the sensitivities' within each budget, then uniform ones."""
    space, found = made.space, {}
    table = sensitivity_table(space, made.sensitivities())
    for budget in BUDGETS.get(stored, OTHER_BUDGETS):
        plan = additive_plan(space, table, budget * MIB)
        if plan is not None:
            found[f"{SENSITIVITIES} {budget} MiB"] = plan
    if stored == "halves":
        return found
    uniform = {bits: space.uniform(bits, 8) for bits in (3, 4)}
    found |= {f"uniform {bits}-bit r8": uniform[bits] for bits in (3, 4)}
    if stored == "trellis":
        found[ISOLATED] = additive_plan(space, table, space.memory_bytes(uniform[3]))
        bits = [UNQUANTIZED_BITS if group.is_embedding else 2 for group in space.groups]
        found["uniform 2-bit r8, embeddings 16-bit"] = Plan(tuple(bits), uniform[3].ranks)
    return found


def searched(task: str) -> dict[str, Plan]:
    """By strategy and budget: the plans that searches handed over."""
    return {
        f"{row['search'].split('-')[1]} {row['budget']}": protocol.expanded(row)
        for row in read(protocol.RESULTS / PLANS)
        if row["search"].startswith(f"{task}-")
    }


def usual(name: str, data: str, task: str, cache: str | None, steps: int) -> tuple[QuantizedLoRAEvaluator, Plan]:
    """LoRA of one rank, on one width everywhere, as it is usually done: nothing but the adapter is trained."""
    backend, bits, rank = USUAL[name]
    made = protocol.evaluator(
        task, data, backend=backend, bits=(bits,), ranks=(rank,), cache=cache, finetune={"steps": steps}
    )  # fmt: skip
    plan = made.space.uniform(bits, rank)
    assert plan is not None
    return made, plan


def words(made: QuantizedLoRAEvaluator, plan: Plan) -> dict[str, Any]:
    """How many linears a plan has at each width and rank, the width of embeddings, and the numbers it trains."""
    space, trained = made.space, 0
    for group, bits, rank in zip(space.groups, plan.bits, plan.ranks, strict=True):
        for m in group.linears:
            trained += rank * (m.out_features + m.in_features)
            if not group.is_embedding:
                trained += made.quantized.trained_numbers(bits, m.out_features, m.in_features)
    linears = [i for i, group in enumerate(space.groups) if not group.is_embedding]
    return {
        "bits": {b: n for b, n in sorted(Counter(str(plan.bits[i]) for i in linears).items())},
        "ranks": {str(r): n for r, n in sorted(Counter(plan.ranks[i] for i in linears).items())},
        "embeddings": [plan.bits[i] for i, group in enumerate(space.groups) if group.is_embedding],
        "trained_numbers": trained,
    }


def right(made: QuantizedLoRAEvaluator) -> list[int]:
    """Whether the likeliest choice of each test row is the right one, by the plan in place: 1 or 0."""
    bench = made.tuner
    rows = bench.rows.task.split("test")[: bench.finetune.test_rows]
    scores = score_choices(bench.model, bench.tokenizer, rows, batch_size=16)
    return (scores.margins > 0).astype(int).tolist()


if __name__ == "__main__":
    main()
