"""What each piece beside the allocation brings, at no bytes: polish, start of the adapters (alone, or fitted in turn
with the bases), trained scales; resumable.

    python -m benchmarks.study.pieces --data DIR --minutes 50

Each tuning is a line of `pieces.jsonl`. All variants of a plan are tuned with the first seed before any with the next.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.common import MIB, read
from benchmarks.study import protocol
from benchmarks.study.intervals import by_seed, change, mean_loss, paired, table_of
from benchmarks.study.protocol import Job
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.space.space import Plan, SearchSpace

SEEDS = 5
"""Each but the first draws its own rows; the first has those of an evaluation."""
SPARED = {"search": "gsm8k-sensitivity-module-0-low", "budget": "2.5-bit"}
"""The plan that spares what is sensitive, at the bytes between uniform 2 and 3 bits."""


@dataclass(frozen=True)
class Pieces:
    """Which pieces are in a tuning."""

    name: str
    polish: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    ranks: tuple[int, ...] = protocol.RANKS
    """Of the space: in turn, the least is taken out of the bases."""

    @property
    def backend(self) -> dict[int, Any]:
        """The study's, with or without polish."""
        gptq = {"name": "reference-gptq", "polish": self.polish}
        return {2: gptq, 3: gptq, 4: gptq, 8: "bitsandbytes-int8"}


SCALES, START, IN_TURN = {"scales": True}, {"init": "calibrated"}, {"init": "caldera"}
VARIANTS = (
    Pieces("plain"),
    Pieces("polish", 2),
    Pieces("start", 0, START),
    Pieces("polish, start", 2, START),
    Pieces("scales", 0, SCALES),
    Pieces("polish, start, scales", 2, START | SCALES),
    Pieces("polish, in turn", 2, IN_TURN),
    Pieces("polish, in turn, scales", 2, IN_TURN | SCALES),
    Pieces("polish, in turn at rank 8", 2, IN_TURN, (8,)),
    Pieces("polish, in turn at rank 8, scales", 2, IN_TURN | SCALES, (8,)),
)


def main() -> None:
    parser = protocol.options(__doc__, seeds=SEEDS)
    options = parser.parse_args()
    path = options.out / "pieces.jsonl"
    if options.table:
        print(*table(read(path)), sep="\n")
        return
    protocol.measure(path, jobs(options), protocol.begin(parser, options), only=options.only)


def jobs(options: Namespace) -> Iterator[tuple[str, Job]]:
    """All tunings, seed by seed."""
    made: dict[str, QuantizedLoRAEvaluator] = {}

    def figures(pieces: Pieces, plan: Plan, seed: int) -> dict[str, Any]:
        if pieces.name not in made:
            made.clear()  # one model at a time
            made[pieces.name] = evaluator(options, pieces)
        return protocol.tuned(made[pieces.name], plan, seed)

    named = plans(evaluator(options, VARIANTS[0]).space)
    for seed in range(options.seeds):
        for plan_name, plan in named.items():
            for pieces in VARIANTS:
                if set(plan.ranks) <= set(pieces.ranks):
                    key = {"plan": plan_name, "pieces": pieces.name, "seed": seed}
                    yield f"{plan_name}: {pieces.name}", (key, partial(figures, pieces, plan, seed))


def plans(space: SearchSpace) -> dict[str, Plan]:
    """By name, the most telling first: uniform ones of rank 8, and a found one with two ranks."""
    spared = protocol.like(SPARED, read(protocol.RESULTS / "plans.jsonl"))
    assert spared is not None  # `search --strategy sensitivity --low` writes it
    return {
        "2-bit r8": space.uniform(2, 8),
        "spared r2": protocol.expanded(spared),
        "4-bit r8": space.uniform(4, 8),
        "3-bit r8": space.uniform(3, 8),
    }


def evaluator(options: Namespace, pieces: Pieces) -> QuantizedLoRAEvaluator:
    return protocol.evaluator(
        "gsm8k", options.data, backend=pieces.backend, ranks=pieces.ranks, cache=options.cache, training=pieces.training
    )


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Mean test loss of each plan with some pieces, and the change from the same plan without any of them."""
    body = []
    for plan, name in dict.fromkeys((d["plan"], d["pieces"]) for d in sorted(lines, key=lambda d: d["plan"])):
        mine, plain = (by_seed(d for d in lines if (d["plan"], d["pieces"]) == (plan, n)) for n in (name, "plain"))
        some, others = paired(mine, plain)
        beside = change(some, others) if name != "plain" else "–"
        every = list(mine.values())
        cells = [f"{every[0]['memory_bytes'] / MIB:.1f}", str(len(every)), f"{mean_loss(every):.4f}"]
        body.append([plan, name, *cells, f"{beside} ({len(some)})"])
    return table_of(["plan", "pieces", "MiB", "seeds", "test loss", "against none, same seeds"], body)


if __name__ == "__main__":
    main()
