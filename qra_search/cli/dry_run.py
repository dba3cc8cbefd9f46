"""What `--dry-run` prints: the resolved config, the space, the extremes of memory, and what the search will cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qra_search.cli import common

if TYPE_CHECKING:
    from qra_search.config import RunConfig
    from qra_search.evaluation.evaluator import Evaluator
    from qra_search.report.terminal.live import View

MUCH = 0.25
"""Share of the budget from which on it is said that embeddings take it."""


def print_dry_run(config: RunConfig, view: View, *, as_json: bool = False) -> None:
    """Build the evaluator, spend nothing, and print what a search would do."""
    with view:
        evaluator = common.build_evaluator(config, view)
    try:
        facts = dry_run(evaluator, config)
    finally:
        evaluator.close()
    if as_json:
        common.emit(facts)
    else:
        _print(facts, config)


def dry_run(evaluator: Evaluator, config: RunConfig) -> dict[str, Any]:
    """Facts of a search that is yet to begin, as plain data.

    If the evaluator is none that `Estimates`, time and peak memory are unknown until the first evaluation.

    Raises:
        BadInput: a budget that no plan fits.
    """
    from qra_search.errors import bad_input
    from qra_search.evaluation.protocols import Estimates
    from qra_search.study.study import resolve_budgets, uniform_design

    space = evaluator.space
    with bad_input():
        budgets = resolve_budgets(space, list(config.search.memory) or None)
    estimate = dict(evaluator.estimate()) if isinstance(evaluator, Estimates) else {}
    if "evaluation_seconds" in estimate:
        prior, setup = estimate.get("prior_seconds", 0.0), estimate.get("setup_seconds", 0.0)
        # The prior's cost counts among the evaluations that may be spent.
        charged = prior / estimate["evaluation_seconds"] if estimate["evaluation_seconds"] else 0.0
        estimate["evaluations_left"] = max(0.0, config.search.evaluations - charged)
        estimate["total_seconds"] = setup + prior + estimate["evaluation_seconds"] * estimate["evaluations_left"]
    return {
        "config": config.model_dump(mode="json"),
        "groups": len(space),
        "kinds": dict(Counter(group.kind or "group" for group in space.groups)),
        "linears": sum(len(group.linears) for group in space.groups),
        "weights": sum(group.weights for group in space.groups),
        "fixed_bytes": space.fixed_bytes,
        "smallest_bytes": space.memory.minimum,
        "largest_bytes": space.memory.maximum,
        "budgets": list(budgets),
        "first": [
            {"bits": plan.bits[0], "rank": plan.ranks[0], "memory_bytes": space.memory_bytes(plan)}
            for plan in uniform_design(space, budgets)
        ],
        "estimate": estimate,
    }


def embeddings_hint(config: RunConfig, fixed: int, budgets: Sequence[int]) -> str | None:
    """What to say where much of the memory is in what no plan changes, and halving that is one setting away.

    Args:
        fixed: bytes of all that is not searched.
        budgets: bytes that plans may take.
    """
    offered = config.evaluator == type(config).model_fields["evaluator"].default
    if not offered or config.quantization.embeddings == 8 or not budgets or fixed < MUCH * min(budgets):
        return None
    return f"{fixed / min(budgets):.0%} of the budget, mostly embeddings: quantization.embeddings=8 halves them"


def _print(facts: dict[str, Any], config: RunConfig) -> None:
    from rich.table import Table

    from qra_search.config import dump_config
    from qra_search.report.words import duration, evaluations_text
    from qra_search.space.memory import format_bytes

    console = common.stdout()
    console.print("[bold]Config, as resolved[/]")
    console.print(dump_config(config), markup=False)
    weights = facts["weights"]

    def size(count: int) -> str:
        return f"{format_bytes(count)}  ({(count - facts['fixed_bytes']) * 8 / weights:.2f} bits a weight)"

    kinds = ", ".join(f"{count} {kind}" for kind, count in facts["kinds"].items())
    budgets = ", ".join(size(b) for b in facts["budgets"]) or "none: the whole front"
    first = "; ".join(f"{p['bits']} bits, rank {p['rank']}: {format_bytes(p['memory_bytes'])}" for p in facts["first"])
    grid = Table.grid(padding=(0, 2))
    grid.add_row("groups", f"{facts['groups']} ({kinds}), {weights:,} weights in {facts['linears']} linears")
    grid.add_row("choices", f"bits {_list(config.space.bits)}; ranks {_list(config.space.ranks)}")
    hint = embeddings_hint(config, facts["fixed_bytes"], facts["budgets"] or [facts["smallest_bytes"]])
    grid.add_row("not searched", format_bytes(facts["fixed_bytes"]) + (f"; {hint}" if hint else ""))
    grid.add_row("smallest plan", size(facts["smallest_bytes"]))
    grid.add_row("largest plan", size(facts["largest_bytes"]))
    grid.add_row("budget", budgets)
    grid.add_row("evaluated first", first or "no uniform plan fits")
    grid.add_row("evaluations", f"{evaluations_text(config.search.evaluations)}, by strategy {config.search.strategy}")
    estimate = facts["estimate"]
    if "total_seconds" in estimate:
        parts = f"{duration(estimate['evaluation_seconds'])} an evaluation"
        if estimate.get("prior_seconds"):
            parts += f", {duration(estimate['prior_seconds'])} for the prior"
        if estimate.get("setup_seconds"):
            parts += f", {duration(estimate['setup_seconds'])} to quantize"
        grid.add_row("time", f"about {duration(estimate['total_seconds'])} ({parts})")
    else:
        grid.add_row("time", "known after the first evaluation")
    if "peak_bytes" in estimate:
        grid.add_row("peak memory", f"about {format_bytes(estimate['peak_bytes'])}")
    console.print("[bold]Space and cost[/]")
    console.print(grid)
    console.print("\nNothing was run. Leave out --dry-run to search.")


def _list(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))
