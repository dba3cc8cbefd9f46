"""What `--dry-run` prints: the resolved config, the space, the cost, and an example as it is tuned on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from qra_search.app.cli import common
from qra_search.app.config import RunConfig, dump_config
from qra_search.app.dry_run import describe_rows, describe_run, format_cost
from qra_search.app.evaluator import build_evaluator, check_can_tune
from qra_search.app.finetune import Tunings, count_recorded
from qra_search.app.report.formatting import format_engine, format_time
from qra_search.app.settings import check_task
from qra_search.app.tracking import find_trackers
from qra_search.schemas import format_level_label
from qra_search.space.memory import format_bytes
from qra_search.study.listener import Listener

PLAN_PHASES, TUNING_PHASES = ("load", "quantize", "sensitivities"), ("tune", "reload")
SHOWN = 600
"""Characters of a part of the example that are shown; of a longer one its end, where the answer is joined to it."""


def print_dry_run(
    config: RunConfig,
    view: Listener,
    *,
    track: Sequence[str] = (),
    tunings: Tunings | None = None,
    rates: Sequence[float] = (),
    is_plan: bool = False,
    evaluations: float | None = None,
    as_json: bool = False,
) -> None:
    """Build the evaluator, spend nothing, and print what a command would do.

    Args:
        track: trackers, which have to be installed; none of them is begun.
        tunings: what would be tuned in full, and no plan searched; None: a search.
        rates: learning rates at which the plan would be tuned first.
        is_plan: a plan, without a search.
        evaluations: full evaluations that a search may still spend; None: as the config says.
    """
    find_trackers(track)
    check_task(config)
    with view:
        built = build_evaluator(config, view.progress, weights=False)
    with closing(built) as evaluator:
        facts = describe_run(evaluator, config, 0 if is_plan else evaluations)
        rows = describe_rows(evaluator)
        if tunings is not None:
            recorded = count_recorded(check_can_tune(evaluator, config), config, tunings, rates)
            plans = [plan.to_dict() for plan in tunings.plans]
            facts["tunings"] = {"plans": plans, "seeds": len(tunings.seeds), "recorded": recorded}
            facts["tunings"]["rates"] = list(dict.fromkeys(rates))
    if as_json:
        common.print_json(facts)
        return
    console, grid = common.stdout(), Table.grid(padding=(0, 2))
    console.print("[bold]Config, as resolved[/]")
    console.print(dump_config(config), markup=False)
    console.print("[bold]Space and cost[/]")
    is_search = tunings is None and not is_plan
    for name, text in (
        *_list_space_rows(facts, config),
        *(("rows", line) for line in rows),
        *_list_cost_rows(facts, config, tunings, is_search=is_search),
    ):
        grid.add_row(name, Text(text))
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
            fits = (
                ""
                if not budgets
                else ": fits the budget"
                if least <= max(budgets)
                else ": more than the budget"
            )
            yield f"in {name}", f"from {format_bytes(least)}{fits}, planned with --engine"


def _list_cost_rows(
    facts: Mapping[str, Any], config: RunConfig, tunings: Tunings | None, *, is_search: bool
) -> Iterator[tuple[str, str]]:
    """What a tuning, a search, or a plan takes."""
    estimate, finetune = facts["estimate"], config.finetune
    phases = dict(estimate.get("phases", {}))
    if not is_search:
        wanted = PLAN_PHASES if tunings is None else TUNING_PHASES
        phases = {name: phases[name] for name in wanted if name in phases}
    if tunings is not None:
        each = f"{finetune.steps} steps" if finetune.epochs is None else f"{finetune.epochs:g} epochs"
        plans, seeds = len(tunings.plans), len(tunings.seeds)
        counts = f"{plans} plan{'s' * (plans != 1)} with {seeds} seed{'s' * (seeds != 1)}"
        recorded, others = facts["tunings"]["recorded"], max(0, len(facts["tunings"]["rates"]) - 1)
        count = len(tunings) + others
        counts += f", and the plan at {others} more learning rate{'s' * (others != 1)}" if others else ""
        done = f"; {recorded} of them are recorded" if recorded else ""
        yield "tunings", f"{count}, of {each} each: {counts}{done}"
        if (seconds := estimate.get("tuning_seconds")) is not None:
            left = count - recorded
            yield (
                "time",
                f"about {format_time(left * seconds)} ({format_time(seconds)} a tuning)" if left else "none",
            )
    else:
        if is_search:
            cost = format_cost(facts["evaluations"], estimate.get("sensitivity_cost", 0.0))
            yield "evaluations", cost if facts["evaluations"] else "none left: give more with --evaluations"
            yield "strategy", config.search.strategy
        if "total_seconds" in estimate:
            answers = ", but for the answers that it writes" if config.search.metric == "task" else ""
            parts = (
                [f"{format_time(estimate['evaluation_seconds'])} an evaluation{answers}"] if is_search else []
            )
            for name, what in (
                ("sensitivities_seconds", "for the sensitivities"),
                ("setup_seconds", "to quantize"),
            ):
                parts += [f"{format_time(estimate[name])} {what}"] if estimate.get(name) else []
            detail = ", ".join(parts) or "all of it is in the cache"
            yield "time", f"about {format_time(estimate['total_seconds'])} ({detail})"
        else:
            yield "time", "unknown until the first evaluation"
    for name, peak in phases.items():
        device = f"{format_bytes(peak['device'])} on the GPU, " if peak["device"] else ""
        yield f"peak of {name}", f"{device}{format_bytes(peak['host'])} of this machine's memory"
    if "disk_bytes" in estimate and tunings is None:
        yield (
            "disk",
            f"{format_bytes(estimate['disk_bytes'])} for every linear at every bit-width, kept for later runs",
        )
