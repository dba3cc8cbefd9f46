"""What `--dry-run` prints: the resolved config, the space, the cost, and an example as it is tuned on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from qra_search.app.cli import common
from qra_search.app.config import RunConfig, dump_config
from qra_search.app.dry_run import describe_rows, format_cost
from qra_search.app.evaluator import build_evaluator
from qra_search.app.report.formatting import format_engine, format_resident_memory, format_time
from qra_search.app.settings import require_task
from qra_search.app.tunable import TunableEvaluator, count_rows, render_row
from qra_search.errors import convert_to_bad_input
from qra_search.evaluator import Evaluator
from qra_search.schemas import format_level_label
from qra_search.space.budgets import resolve_budgets
from qra_search.space.memory import format_bytes
from qra_search.study.study import Listener

PLAN_PHASES = ("load", "quantize", "sensitivities")
SHOWN = 600
"""Characters of a part of the example that are shown; of a longer one its end, where the answer is joined to it."""


def print_dry_run(
    config: RunConfig,
    view: Listener,
    *,
    is_plan: bool = False,
    evaluations: float | None = None,
    as_json: bool = False,
) -> None:
    """Build the evaluator, spend nothing, and print what a command would do."""
    require_task(config)
    with view:
        built = build_evaluator(config, view.progress, weights=False)
    with closing(built) as evaluator:
        facts = describe_run(evaluator, config, 0 if is_plan else evaluations)
        rows = describe_rows(evaluator)
    if as_json:
        common.print_json(facts)
        return
    console, grid = common.stdout(), Table.grid(padding=(0, 2))
    console.print("[bold]Config, as resolved[/]")
    console.print(dump_config(config), markup=False)
    console.print("[bold]Space and cost[/]")
    for name, text in _list_space_rows(facts, config):
        grid.add_row(name, Text(text))
    for line in rows:
        grid.add_row("rows", Text(line))
    phases = dict(facts["estimate"].get("phases", {}))
    for name, text in _list_search_costs(facts, config, is_plan=is_plan):
        grid.add_row(name, Text(text))
    for name, peak in phases.items():
        if is_plan and name not in PLAN_PHASES:
            continue
        device = f"{format_bytes(peak['device'])} on the GPU, " if peak["device"] else ""
        grid.add_row(
            f"peak of {name}", Text(f"{device}{format_bytes(peak['host'])} of this machine's memory")
        )
    console.print(grid)
    if facts["example"]:
        console.print("\n[bold]An example, as it is tuned on[/]")
        for learnt, parts in groupby(facts["example"], lambda piece: piece["learnt"]):
            text = "".join(piece["text"] for piece in parts)
            cut = "... " if len(text) > SHOWN else ""
            name, style = ("learnt", "bold") if learnt else ("given", "")
            # As a Python literal, which shows spaces and line ends.
            console.print(f"{name:8}{cut}{text[-SHOWN:]!r}", markup=False, style=style)
    console.print("\nNothing was run. Leave out --dry-run to go on.")


def describe_run(evaluator: Evaluator, config: RunConfig, evaluations: float | None = None) -> dict[str, Any]:
    """Facts of a plan or a search that is yet to begin, as plain data; raises BadInput for a budget that no plan fits.

    Of an evaluator that does not estimate its cost, time and peak memory are unknown until the first evaluation.
    """
    space = evaluator.space
    with convert_to_bad_input():
        budgets = resolve_budgets(space, config.search.memory)
    count = config.search.evaluations if evaluations is None else evaluations
    estimate = {}
    if isinstance(evaluator, TunableEvaluator):
        estimate = dict(evaluator.estimate_search_cost())
        if estimate.get("sensitivities_seconds"):
            estimate["sensitivity_cost"] = evaluator.sensitivity_cost()
        before = estimate.get("setup_seconds", 0.0) + estimate.get("sensitivities_seconds", 0.0)
        estimate["total_seconds"] = before + estimate["evaluation_seconds"] * count
    linears = [group for group in space.groups if not group.is_embedding]
    return {
        "config": config.model_dump(mode="json"),
        "groups": len(space),
        "linears": sum(len(group.linears) for group in space.groups),
        "weights": space.weights,
        "fixed_bytes": space.fixed_bytes,
        "levels": [b for b in space.bits if any(b in (group.bits or space.bits) for group in linears)],
        "smallest_bytes": space.memory.minimum,
        "largest_bytes": space.memory.maximum,
        "budgets": list(budgets),
        "evaluations": count,
        "rows": {name: asdict(count) for name, count in count_rows(evaluator).items()},
        "estimate": estimate,
        "example": [{"text": text, "learnt": learnt} for text, learnt in render_row(evaluator)],
    }


def _list_space_rows(facts: Mapping[str, Any], config: RunConfig) -> Iterator[tuple[str, str]]:
    weights, fixed, budgets = facts["weights"], facts["fixed_bytes"], facts["budgets"]

    def format_size(count: int) -> str:
        return f"{format_bytes(count)}  ({(count - fixed) * 8 / weights:.2f} bits a weight)"

    yield "groups", f"{facts['groups']}, {weights:,} weights in {facts['linears']} linears"
    bits, ranks = ", ".join(map(format_level_label, facts["levels"])), ", ".join(map(str, config.space.ranks))
    yield "choices", f"bits {bits}; ranks {ranks}"
    yield "not searched", format_bytes(fixed)
    yield "smallest plan", format_size(facts["smallest_bytes"])
    yield "largest plan", format_size(facts["largest_bytes"])
    yield "budget", ", ".join(map(format_size, budgets)) or "none: the whole front"
    yield "will run", format_engine(config)
    for name, least in facts["estimate"].get("engines", {}).items():
        if isinstance(least, str):
            yield f"in {name}", f"not this model: {least}"
        else:
            fits = ": fits the budget" if least <= max(budgets, default=0) else ": more than the budget"
            yield f"in {name}", f"from {format_bytes(least)}{fits if budgets else ''}, planned with --engine"
    if budgets and (resident := format_resident_memory(config, budgets[-1], weights)):
        yield "memory", resident


def _list_search_costs(
    facts: Mapping[str, Any], config: RunConfig, *, is_plan: bool
) -> Iterator[tuple[str, str]]:
    estimate, parts = facts["estimate"], []
    if not is_plan:
        cost = format_cost(facts["evaluations"], estimate.get("sensitivity_cost", 0.0))
        yield "evaluations", cost if facts["evaluations"] else "none left: give more with --evaluations"
        yield "strategy", config.search.strategy
    if "total_seconds" in estimate:
        if not is_plan:
            answers = ", but for the answers that it writes" if config.search.metric == "task" else ""
            parts.append(f"{format_time(estimate['evaluation_seconds'])} an evaluation{answers}")
        if estimate.get("sensitivities_seconds"):
            parts.append(f"{format_time(estimate['sensitivities_seconds'])} for the sensitivities")
        if estimate.get("setup_seconds"):
            parts.append(f"{format_time(estimate['setup_seconds'])} to quantize")
        detail = ", ".join(parts) or "all of it is in the cache"
        yield "time", f"about {format_time(estimate['total_seconds'])} ({detail})"
    else:
        yield "time", "unknown until the first evaluation"
    if "tuning_seconds" in estimate:
        trials = ", and at most as much for the trials of learning rates" * (
            config.training.learning_rate == "auto"
        )
        yield "each tuning", f"about {format_time(estimate['tuning_seconds'])}, but for its answers{trials}"
