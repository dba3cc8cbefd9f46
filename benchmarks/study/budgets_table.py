"""What the lines of `budgets.jsonl` hold, and the tables made of them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import protocol
from lines import MIB, change, difference, rows_of, table_of

REFERENCE = "16-bit r32"
NF4 = "nf4 4-bit r8"
DORA = "16-bit r32 DoRA"
USUAL = {
    REFERENCE: (protocol.BACKEND, 16, 32),
    NF4: ("bitsandbytes-nf4", 4, 8),
    "16-bit r16": (protocol.BACKEND, 16, 16),
    "16-bit r64": (protocol.BACKEND, 16, 64),
    DORA: (protocol.BACKEND, 16, 32),
}
"""Backend, width and rank of LoRA as it is usually done, embeddings in 16 bits: rank 16 trains about as many numbers as
the sensitivities' plans do with scales, ranks 32 and 64 two and four times as many, DoRA a scale for each row."""
PLANS = "plans-newest.jsonl"
"""What searches found."""
SENSITIVITIES = "sensitivities"
EARLIER: dict[str, Any] = {
    "zeros": "16-bit", "own_rows": False, "init": "default", "scales": False, "prior": 5, "choices": None,
    "steps": protocol.FINETUNE.steps,
}  # fmt: skip
"""What lines of earlier rounds leave out; their seeds had all the same rows to tune on."""


def whole(line: dict[str, Any]) -> dict[str, Any]:
    """A line with what those of earlier rounds leave out."""
    return {**EARLIER, **line}


def print_table(lines: list[dict[str, Any]], final: list[dict[str, Any]]) -> None:
    """Mean test loss over seeds, and the difference to 16-bit LoRA with an interval of 95% over rows and seeds.

    Args:
        final: lines with LoRA as it is usually done, of the seeds that have the same rows.
    """
    shared = [{**d, "plan": d["row"]} for d in final if d["task"] == "gsm8k" and d["row"] in USUAL]
    lines = list(map(whole, [*shared, *lines]))
    rival = {(d["seed"], d["own_rows"], d["steps"]): d for d in lines if d["plan"] == REFERENCE}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for d in lines:
        if (d["seed"], d["own_rows"], d["steps"]) in rival:
            groups[d["plan"], d["prior"], d["zeros"], d["init"], d["scales"], d["steps"], d["own_rows"]].append(d)
    head = (
        "| plan | prior | zeros | start | scales | steps | MiB | embeddings | seeds | test loss | against 16-bit r32 |"
    )
    chosen = any("row_right" in d for d in lines)
    print(head + (" right choices | against 16-bit r32, points |" if chosen else ""))
    print("|" + "---|" * (13 if chosen else 11))
    for (plan, sensitivities, zeros, init, scales, steps, own), some in groups.items():
        others = [rival[d["seed"], own, steps] for d in some]
        embeddings = " ".join(map(str, some[0].get("embeddings") or [16]))
        seeds = f"{len(some)}{'' if own else ', same rows'}"
        if plan in USUAL:
            zeros = sensitivities = "–"
        line = (
            f"| {plan} | {sensitivities} | {zeros} | {init} | {'trained' if scales else 'fitted'} | {steps} | "
            f"{some[0]['memory_bytes'] / MIB:.1f} | {embeddings} | {seeds} | "
            f"{np.mean([d['test_loss'] for d in some]):.4f} | {change(some, others)} |"
        )
        if chosen:
            right_of = (rows_of(side, "row_right") for side in (some, others))
            low, mean, high = (f"{100 * x:+.1f}" for x in difference(*right_of, relative=False))
            line += f" {np.mean([d['row_right'] for d in some]):.1%} | {mean} [{low}, {high}] |"
        print(line)


def searched_table(lines: list[dict[str, Any]]) -> list[str]:
    """Mean test loss of the plans that searches found, and the difference to the sensitivities' of the same seeds."""
    alike = {"own_rows": True, "scales": True, "init": "default", "zeros": "16-bit", "steps": EARLIER["steps"]}
    by_plan: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for d in map(whole, lines):
        if d["plan"] not in USUAL and all(d[k] == v for k, v in alike.items()):
            by_plan[d["plan"]].setdefault(d["seed"], d)
    rows = []
    for plan, mine in by_plan.items():
        strategy, _, budget = plan.partition(" ")
        rival = by_plan.get(f"{SENSITIVITIES} {budget}", {})
        both = [seed for seed in mine if seed in rival]
        if not both:
            continue
        some, others = ([side[seed] for seed in both] for side in (mine, rival))
        size, loss = some[0]["memory_bytes"] / MIB, float(np.mean([d["test_loss"] for d in some]))
        embeddings = " ".join(map(str, some[0]["embeddings"]))
        against = "–" if strategy == SENSITIVITIES else change(some, others)
        rows.append((budget, loss, [strategy, f"{size:.1f}", embeddings, str(len(both)), f"{loss:.4f}", against]))
    body = [[budget, *cells] for budget, _, cells in sorted(rows)]
    return table_of(
        ["within", "found by", "MiB", "embeddings", "seeds", "test loss", "against the sensitivities'"], body
    )
