"""Tunings of the earlier round, embeddings in 16 bits: plans found and uniform rivals, three seeds each; resumable.

    python -m benchmarks.study.final --data DIR --minutes 50

Each tuning is a line of `final.jsonl`. All seeds see the same rows, in another order. Found plans (`search.py`) and
their closest rivals come first, with every seed; then more rivals. The tables are made by `tables.py`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.common import read
from benchmarks.study import protocol
from benchmarks.study.protocol import BACKEND, Job, Uniform
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.space.space import Plan

UNIFORM = (
    *(Uniform(BACKEND, *choice) for choice in ((4, 8), (3, 8), (3, 2), (16, 8), (3, 32), (16, 32))),
    *(Uniform("bitsandbytes-nf4", 4, rank) for rank in (8, 2)),
    *(Uniform("hqq", 3, rank) for rank in (8, 32)),
)
"""The rivals that are tuned with every seed first."""
MORE = (
    *(Uniform(BACKEND, *choice) for choice in ((4, 2), (2, 8), (2, 32), (4, 8, 8), (3, 8, 8))),
    *(Uniform("bitsandbytes-nf4", 4, rank) for rank in (32, 16, 4)),
    *(Uniform("hqq", *choice) for choice in ((3, 2), (4, 2), (4, 8), (3, 4), (4, 4), (3, 16), (4, 16), (4, 32))),
    *(Uniform("hqq", bits, 8) for bits in (2, 8)),
)
"""Tuned with every seed after those."""


def main() -> None:
    parser = protocol.options(__doc__, seeds=len(protocol.SEEDS))
    parser.add_argument("--task", choices=protocol.TASKS, default="gsm8k")
    parser.add_argument(
        "--plans-of", metavar="TASK", help="tune the plans found on this task instead: what carries over"
    )
    options = parser.parse_args()
    until = protocol.begin(parser, options)
    protocol.measure(options.out / "final.jsonl", jobs(options), until, only=options.only)


def jobs(options: Namespace) -> Iterator[tuple[str, Job]]:
    """All tunings, the most telling first."""
    source = options.plans_of or options.task
    of = "" if source == options.task else f"{source}'s "
    # Sorted, so that fewer models are loaded.
    plans = sorted(read(options.out / "plans.jsonl"), key=lambda row: row.get("embeddings", 16), reverse=True)
    found = [
        (f"{of}{row['search'].removeprefix(source + '-')} @ {row['budget']}", row)
        for row in plans
        if row["search"].startswith(f"{source}-")
    ]
    made: dict[tuple[Any, ...], QuantizedLoRAEvaluator] = {}

    def figures(row: dict[str, str] | Uniform, seed: int) -> dict[str, Any]:
        uniform = isinstance(row, Uniform)
        backend, embeddings = (row.backend, row.embeddings) if uniform else (BACKEND, row.get("embeddings", 16))
        bits = (row.bits,) if backend != BACKEND else (*protocol.BITS, 16)
        kind = (backend, bits, embeddings)
        if kind not in made:
            made.clear()  # one model at a time
            made[kind] = protocol.evaluator(
                options.task, options.data, backend=backend, bits=bits, ranks=(*protocol.RANKS, 32),
                embeddings=embeddings, cache=options.cache,
            )  # fmt: skip
        bench = made[kind].tuner
        plan: Plan = made[kind].space.uniform(row.bits, row.rank) if uniform else protocol.expanded(row)
        batches = bench.batches(bench.finetune.steps, seed)  # of the same rows for every seed
        return {"backend": backend, **protocol.tuned(made[kind], plan, seed, batches)}

    first = [*found, *((plan.name, plan) for plan in UNIFORM)]
    for rows in (first, [(plan.name, plan) for plan in MORE]):
        for seed in protocol.SEEDS[: options.seeds]:
            for name, row in rows:
                yield name, ({"task": options.task, "row": name, "seed": seed}, partial(figures, row, seed))


if __name__ == "__main__":
    main()
