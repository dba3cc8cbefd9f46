"""Bits that other tools choose, beside ours at the same bytes, quantized and tuned alike; resumable.

    python -m benchmarks.study.peers --data DIR --minutes 50

The tools' choices are lines of `peer_plans.jsonl` (`peer_plans.py`), so none of them is needed here. Beside those that
were asked for the same mean bits is the exact optimum of our sensitivities within the bytes of the smallest. Rank 2
everywhere, embeddings in 16 bits, trellis codes (lines without `stored`: groups of 64). Each tuning is a line of
`peers.jsonl`; `--table` prints them in pairs.
"""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.common import MIB, read
from benchmarks.study import protocol
from benchmarks.study.budgets import BACKEND, STORED
from benchmarks.study.intervals import by_seed, change, mean_loss, paired, table_of
from benchmarks.study.protocol import Job
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.space.space import Plan, SearchSpace
from qra_search.strategies.additive import additive_plan
from qra_search.surrogates.sensitivity_table import sensitivity_table

RANK = 2
OURS = "sensitivities"


def main() -> None:
    parser = protocol.options(__doc__, seeds=1)
    options = parser.parse_args()
    path = options.out / "peers.jsonl"
    if options.table:
        print(*table(read(path)), sep="\n")
        return
    protocol.measure(path, jobs(options), protocol.begin(parser, options), only=options.only)


def jobs(options: Namespace) -> Iterator[tuple[str, Job]]:
    """Each tool's choice and ours within its bytes, the smallest first."""
    made = protocol.evaluator(
        "gsm8k", options.data, backend=BACKEND, ranks=(RANK,), cache=options.cache, training={"scales": True}
    )
    space, losses = made.space, sensitivity_table(made.space, made.sensitivities())
    choices = read(protocol.RESULTS / "peer_plans.jsonl")
    chosen = {name_of(d): plan_of(space, d["bits"]) for d in choices}
    within = dict(zip(chosen, same_bytes(choices, [space.memory_bytes(plan) for plan in chosen.values()]), strict=True))
    for seed in protocol.SEEDS[: options.seeds]:
        for name in sorted(chosen, key=within.__getitem__):
            ours = additive_plan(space, losses, within[name])
            assert ours is not None  # another plan fits, so one does
            for plan_name, plan in ((name, chosen[name]), (OURS, ours)):
                key = {"plan": plan_name, "within_bytes": within[name], "seed": seed, "stored": STORED}
                shown = name if plan_name == name else f"{OURS} within the bytes of {name}"
                yield shown, (key, partial(figures, made, plan, seed))


def figures(made: QuantizedLoRAEvaluator, plan: Plan, seed: int) -> dict[str, Any]:
    """Also how many linears a plan has at each width, and the mean bits of a weight in them."""
    weights = [group.weights for group in made.space.groups]
    mean = sum(bits * n for bits, n in zip(plan.bits, weights, strict=True)) / sum(weights)
    widths = {str(b): n for b, n in sorted(Counter(plan.bits).items())}
    return {"linears": widths, "mean_bits": round(mean, 3), **protocol.tuned(made, plan, seed)}


def plan_of(space: SearchSpace, bits: dict[str, int]) -> Plan:
    """The plan of a tool's choice, bits by linear.

    Raises:
        ValueError: other linears than the space's.
    """
    names = [linear.name for group in space.groups for linear in group.linears]
    if set(names) != set(bits):
        raise ValueError(f"{len(set(names) ^ set(bits))} linears are in the model or the tool's choice alone")
    return Plan(tuple(bits[name] for name in names), (RANK,) * len(names))


def name_of(choice: dict[str, Any]) -> str:
    asked = "" if choice["target"] is None else f" at {choice['target']:g} bits"
    return f"{choice['tool']} {choice['version']}, {choice['way']}{asked}"


def same_bytes(choices: list[dict[str, Any]], own: list[int]) -> list[int]:
    """Bytes that ours may take beside each choice: the least of those that were asked for the same bits."""
    asked = [(d["target"], d["way"] if d["target"] is None else None) for d in choices]
    return [min(size for other, size in zip(asked, own, strict=True) if other == mine) for mine in asked]


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Each choice and ours within its bytes: mean test loss over seeds, and the change from theirs to ours, 95%."""
    head = [
        "choice",
        "linears at each width",
        "mean bits",
        "MiB",
        "seeds",
        "test loss",
        "ours, MiB",
        "its loss",
        "change",
    ]
    body = []
    lines = [{**d, "plan": f"{d['plan']}, {d['stored']}"} if "stored" in d else d for d in lines]
    for name in dict.fromkeys(d["plan"] for d in sorted(lines, key=lambda d: d["within_bytes"]) if not is_ours(d)):
        their_lines = by_seed(d for d in lines if d["plan"] == name)
        first = next(iter(their_lines.values()))
        given, stored = first["within_bytes"], first.get("stored")
        our_lines = by_seed(d for d in lines if is_ours(d) and (d["within_bytes"], d.get("stored")) == (given, stored))
        theirs, ours = paired(their_lines, our_lines)
        if theirs:
            widths = ", ".join(f"{n} at {bits}" for bits, n in theirs[0]["linears"].items())
            size, own_size = (f"{side[0]['memory_bytes'] / MIB:.2f}" for side in (theirs, ours))
            cells = [name, widths, f"{theirs[0]['mean_bits']:.2f}", size, str(len(theirs)), f"{mean_loss(theirs):.4f}"]
            body.append([*cells, own_size, f"{mean_loss(ours):.4f}", change(ours, theirs)])
    return table_of(head, body)


def is_ours(line: dict[str, Any]) -> bool:
    return line["plan"].startswith(OURS)


if __name__ == "__main__":
    main()
