"""Bytes needed for a quality: the sensitivities' plans with searched embeddings, tuned with scales; resumable.

    python -m benchmarks.study.budgets --data DIR --minutes 50

Each tuning is a line of `budgets.jsonl`. Plans are the exact optimum of the measured sensitivities within so many MiB,
embeddings among the groups, and within the bytes of a uniform plan: what choosing by layer brings, all else alike.
Beside them are uniform plans, and LoRA as it is usually done: in 16 bits with rank 32, and QLoRA's nf4 with rank 8.
Every seed draws its own rows to train on, the same for all plans. `--table` prints what is there (`budgets_table.py`),
also of the round in groups of 64, with the plans that searches found (its scripts are at 1d624b8e).
"""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.common import MIB, read
from benchmarks.study import protocol
from benchmarks.study.budgets_table import ISOLATED, NF4, REFERENCE, SENSITIVITIES, USUAL, searched_table, table
from benchmarks.study.protocol import Job
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.sensitivities.cache import SENSITIVITIES_VERSION
from qra_eval.tasks.scoring import score_choices
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan
from qra_search.strategies.additive import additive_plan
from qra_search.surrogates.sensitivity_table import sensitivity_table

BUDGETS = (62, 56, 47, 72, 80)
"""MiB, in the order of the tunings."""
STORED, BACKEND = "trellis", "mixed-calibrated"
EMBEDDINGS = (3, 4, 5, 6, 8, 16)
SEEDS = range(5)
"""Each draws its own rows and batches."""


def main() -> None:
    parser = protocol.options(__doc__, seeds=len(SEEDS))
    parser.add_argument("--task", choices=protocol.TASKS, default="gsm8k")
    options = parser.parse_args()
    path = options.out / ("budgets.jsonl" if options.task == "gsm8k" else f"budgets-{options.task}.jsonl")
    if options.table:
        print(*table(read(path)), "", *searched_table(read(path)), sep="\n")
        return
    protocol.measure(path, jobs(options), protocol.begin(parser, options), only=options.only)


def jobs(options: Namespace) -> Iterator[tuple[str, Job]]:
    """All tunings, seed by seed."""
    made = protocol.evaluator(
        options.task, options.data, backend=BACKEND, embeddings=EMBEDDINGS, cache=options.cache,
        training={"scales": True},
    )  # fmt: skip
    sides = {REFERENCE: usual(REFERENCE, options)}
    sides |= {name: (made, plan) for name, plan in plans(made).items()}
    sides[NF4] = usual(NF4, options)
    for seed in SEEDS[: options.seeds]:
        for name, (side, plan) in sides.items():
            key = {"plan": name, "seed": seed, "steps": protocol.FINETUNE.steps, "compute": protocol.COMPUTE}
            if name not in USUAL:
                key |= {"init": "default", "scales": True, "stored": STORED, "prior": SENSITIVITIES_VERSION}
            yield name, (key, partial(figures, side, plan, seed, options.task))


def figures(side: QuantizedLoRAEvaluator, plan: Plan, seed: int, task: str) -> dict[str, Any]:
    """What is measured of a plan."""
    line = {**words(side, plan), **protocol.tuned(side, plan, seed)}
    return line if task == "gsm8k" else {**line, "row_right": right(side)}


def plans(made: QuantizedLoRAEvaluator) -> dict[str, Plan]:
    """By name: the sensitivities' within each budget, uniform ones, and the sensitivities' in the bytes of one."""
    space, found = made.space, {}
    table = sensitivity_table(space, made.sensitivities())
    for budget in BUDGETS:
        plan = additive_plan(space, table, budget * MIB)
        if plan is not None:
            found[f"{SENSITIVITIES} {budget} MiB"] = plan
    uniform = {bits: space.uniform(bits, 8) for bits in (3, 4)}
    found |= {f"uniform {bits}-bit r8": uniform[bits] for bits in (3, 4)}
    found[ISOLATED] = additive_plan(space, table, space.memory_bytes(uniform[3]))
    bits = [UNQUANTIZED_BITS if group.is_embedding else 2 for group in space.groups]
    found["uniform 2-bit r8, embeddings 16-bit"] = Plan(tuple(bits), uniform[3].ranks)
    return found


def usual(name: str, options: Namespace) -> tuple[QuantizedLoRAEvaluator, Plan]:
    """LoRA of one rank, on one width everywhere, as it is usually done: nothing but the adapter is trained."""
    backend, bits, rank = USUAL[name]
    made = protocol.evaluator(
        options.task, options.data, backend=backend, bits=(bits,), ranks=(rank,), cache=options.cache
    )
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
