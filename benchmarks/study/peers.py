"""Bits that other tools choose, beside ours at the same bytes, quantized and tuned alike; resumable.

    python benchmarks/study/peers.py --data DIR --minutes 50

The tools' choices are lines of `peer_plans.jsonl` (`peer_plans.py`), so none of them is needed here. Beside those that
were asked for the same mean bits is the exact optimum of our sensitivities within the bytes of the smallest. Rank 2
everywhere, embeddings in 16 bits. Each tuning is a line of `peers.jsonl`, in the form of `pieces.jsonl`; `--table`
prints them in pairs.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from typing import Any

import protocol
from lines import MIB, RESULTS, change, read
from pieces import tuned

from qra_search.space.space import Plan, SearchSpace
from qra_search.strategies.additive import additive_plan
from qra_search.surrogates.prior_table import prior_table

RANK = 2
OURS = "sensitivities"


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


def main() -> None:
    parser = protocol.options(__doc__, seeds=1)
    parser.add_argument("--only", default="", help="only choices in whose name this regular expression is found")
    options = parser.parse_args()
    path = options.out / "peers.jsonl"
    if options.table:
        print_table(read(path))
        return
    until, commit = protocol.begin(parser, options)
    made = protocol.evaluator("gsm8k", options.data, ranks=(RANK,), cache=options.cache)
    space, table = made.space, prior_table(made.space, made.sensitivities())
    choices = read(RESULTS / "peer_plans.jsonl")
    chosen = {name_of(d): plan_of(space, d["bits"]) for d in choices}
    within = dict(zip(chosen, same_bytes(choices, [space.memory_bytes(plan) for plan in chosen.values()]), strict=True))
    for seed in protocol.SEEDS[: options.seeds]:
        for name in sorted(chosen, key=within.__getitem__):
            if not re.search(options.only, name):
                continue
            ours = additive_plan(space, table, within[name])
            assert ours is not None  # another plan fits, so one does
            for plan_name, plan in ((name, chosen[name]), (OURS, ours)):
                key = {"plan": plan_name, "within_bytes": within[name], "seed": seed}
                if any(all(d[k] == key[k] for k in key) for d in read(path)):
                    continue
                if until is not None and time.monotonic() > until:
                    raise SystemExit(protocol.LEFT)
                line = {**key, **words(space, plan), **tuned(made, plan, seed), "commit": commit}
                with path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                size = line["memory_bytes"] / MIB
                print(f"seed {seed}  {plan_name}: {size:.2f} MiB, {line['test_loss']:.4f}", flush=True)


def words(space: SearchSpace, plan: Plan) -> dict[str, Any]:
    """How many linears a plan has at each width, and the mean bits of a weight in them."""
    weights = [group.weights for group in space.groups]
    mean = sum(bits * n for bits, n in zip(plan.bits, weights, strict=True)) / sum(weights)
    return {"linears": {str(b): n for b, n in sorted(Counter(plan.bits).items())}, "mean_bits": round(mean, 3)}


def print_table(lines: list[dict[str, Any]]) -> None:
    """Each choice and ours within its bytes: mean test loss over seeds, and the change from theirs to ours, 95%."""
    print(
        "| choice | linears at each width | mean bits | MiB | seeds | test loss | ours, MiB | its loss | change |\n|"
        + "---|" * 9
    )
    for name in dict.fromkeys(d["plan"] for d in sorted(lines, key=lambda d: d["within_bytes"]) if d["plan"] != OURS):
        theirs = {d["seed"]: d for d in lines if d["plan"] == name}
        given = next(iter(theirs.values()))["within_bytes"]
        ours = {d["seed"]: d for d in lines if d["plan"] == OURS and d["within_bytes"] == given}
        seeds = [seed for seed in theirs if seed in ours]
        if not seeds:
            continue
        first = theirs[seeds[0]]
        beside = change([ours[s] for s in seeds], [theirs[s] for s in seeds])
        widths = ", ".join(f"{n} at {bits}" for bits, n in first["linears"].items())
        their_loss, our_loss = (sum(side[s]["test_loss"] for s in seeds) / len(seeds) for side in (theirs, ours))
        our_size = ours[seeds[0]]["memory_bytes"] / MIB
        print(
            f"| {name} | {widths} | {first['mean_bits']:.2f} | {first['memory_bytes'] / MIB:.2f} | {len(seeds)} | "
            f"{their_loss:.4f} | {our_size:.2f} | {our_loss:.4f} | {beside} |"
        )


if __name__ == "__main__":
    main()
