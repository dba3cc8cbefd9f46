"""What `--dry-run` prints: the resolved config, the space, the extremes of memory, and what the search will cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from qra_search.cli import common
from qra_search.config import RunConfig, dump_config
from qra_search.evaluation.evaluator import RowCount
from qra_search.report.formatting import duration, evaluations_text
from qra_search.report.terminal.live import View
from qra_search.space.levels import level_words
from qra_search.space.memory import format_bytes
from qra_search.workflow.costs import Costs
from qra_search.workflow.dry_run import embeddings_hint, foretold
from qra_search.workflow.rows import rows_text


def print_dry_run(
    config: RunConfig, view: View, *, track: Sequence[str] = (), begun: bool = False, as_json: bool = False
) -> None:
    """Build the evaluator, spend nothing, and print what a search would do.

    Args:
        track: trackers, which have to be installed; none of them is begun.
        begun: the search has a log already, which a second look at the run that it learnt from would not change.
    """
    facts = foretold(config, view, track=track, begun=begun)
    if as_json:
        common.emit(facts)
    else:
        _print(facts, config)


def _print(facts: dict[str, Any], config: RunConfig) -> None:
    console = common.stdout()
    console.print("[bold]Config, as resolved[/]")
    console.print(dump_config(config), markup=False)
    weights = facts["weights"]

    def size(count: int) -> str:
        return f"{format_bytes(count)}  ({(count - facts['fixed_bytes']) * 8 / weights:.2f} bits a weight)"

    kinds = ", ".join(f"{count} {kind}" for kind, count in facts["kinds"].items())
    budgets = ", ".join(size(b) for b in facts["budgets"]) or "none: the whole front"
    first = "; ".join(
        f"{level_words(p['bits'])}, rank {p['rank']}: {format_bytes(p['memory_bytes'])}" for p in facts["first"]
    )
    grid = Table.grid(padding=(0, 2))
    grid.add_row("groups", f"{facts['groups']} ({kinds}), {weights:,} weights in {facts['linears']} linears")
    bits, ranks = (", ".join(map(str, values)) for values in (config.space.bits, config.space.ranks))
    grid.add_row("choices", f"bits {bits}; ranks {ranks}")
    hint = embeddings_hint(config, facts["fixed_bytes"], facts["budgets"] or [facts["smallest_bytes"]])
    grid.add_row("not searched", format_bytes(facts["fixed_bytes"]) + (f"; {hint}" if hint else ""))
    grid.add_row("smallest plan", size(facts["smallest_bytes"]))
    grid.add_row("largest plan", size(facts["largest_bytes"]))
    grid.add_row("budget", budgets)
    grid.add_row("evaluated first", first or "no uniform plan fits")
    for line in rows_text({name: RowCount(**count) for name, count in facts["rows"].items()}):
        grid.add_row("rows", line)
    grid.add_row("evaluations", f"{evaluations_text(config.search.evaluations)}, by strategy {config.search.strategy}")
    estimate = facts["estimate"]
    if "sensitivities_charge" in estimate:
        grid.add_row("", Costs(config.search.evaluations, estimate["sensitivities_charge"]).charge_text)
    if "total_seconds" in estimate:
        parts = f"{duration(estimate['evaluation_seconds'])} an evaluation"
        if estimate.get("sensitivities_seconds"):
            parts += f", {duration(estimate['prior_seconds'])} for the sensitivities"
        if estimate.get("setup_seconds"):
            parts += f", {duration(estimate['setup_seconds'])} to quantize"
        grid.add_row("time", f"about {duration(estimate['total_seconds'])} ({parts})")
    else:
        grid.add_row("time", "known after the first evaluation")
    for name, peak in estimate.get("phases", {}).items():
        there = f"{format_bytes(peak['device'])} on the GPU, " if peak["device"] else ""
        grid.add_row(f"peak of {name}", f"{there}{format_bytes(peak['host'])} of this machine's memory")
    if "phases" not in estimate and "peak_bytes" in estimate:
        grid.add_row("peak memory", f"about {format_bytes(estimate['peak_bytes'])}")
    if "disk_bytes" in estimate:
        grid.add_row(
            "disk", f"{format_bytes(estimate['disk_bytes'])} for every linear at every bit-width, kept for later runs"
        )
    console.print("[bold]Space and cost[/]")
    console.print(grid)
    console.print("\nNothing was run. Leave out --dry-run to search.")
