"""`qra plan` and `qra search`: from a model, a task and a memory budget to a plan, in a folder that can be resumed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from rich.text import Text

from qra_search.allocate.solve import solve_front
from qra_search.app.cli import common
from qra_search.app.cli.common import WHERE_PANEL, option
from qra_search.app.config import RunConfig, dump_config, make_folder_name, require_budget, require_task
from qra_search.app.dry_run import (
    describe_rows,
    describe_run,
    describe_search_cost,
    list_run_facts,
)
from qra_search.app.evaluator import Workers, build_evaluator
from qra_search.app.folder import RunFolder, Snapshot
from qra_search.app.report import formatting
from qra_search.app.report.finding import summarize_run
from qra_search.app.report.live import make_listener
from qra_search.app.report.tables import make_allocation_table, make_predicted_front_table, render_result
from qra_search.app.run import Run
from qra_search.errors import BadInput
from qra_search.space.budgets import describe_size
from qra_search.study.study import Listener

EXAMPLE_CHARACTERS = 600
"""Characters of a part of the example that are shown; of a longer one its end, where the answer is joined to it."""
BATCH_HELP = (
    "Propose N plans at a time and wait for all of them, "
    "so that the trials are the same with any number of workers."
)


@common.with_settings(*common.SEARCH_SETTINGS)
def plan(
    given: Mapping[str, Any],
    out: common.OutOption = None,
    front: Annotated[
        bool, option("--front", "Also print memory against predicted loss for every size.")
    ] = False,
    dry_run: common.DryRunOption = False,
    as_json: common.JsonOption = False,
) -> None:
    """Choose bits and ranks for a budget, without training.

    Measures how sensitive every group is, solves the choice exactly, and says what is predicted to be
    gained over uniform plans of the same bytes. The run it leaves is tuned by `qra finetune` and searched further by
    `qra search RUN`.

    [bold]Example[/]

        qra plan --model smollm2 --task arithmetic --memory 95MiB --out runs/a
    """
    settings = common.read_settings(given)
    view = make_listener(not as_json)
    if dry_run:
        require_budget(settings)
        _print_dry_run(settings, view, is_plan=True, as_json=as_json)
        return
    with Run(out or make_folder_name(settings), settings) as run:
        result = run.make_plan(progress=view)
        cost = describe_search_cost(run.evaluator(), run.config.search.evaluations, is_measured=True)
    if as_json:
        sizes = solve_front(result.space, result.sensitivities) if front else []
        more = {"predicted_front": [allocation.to_dict() for allocation in sizes]} if front else {}
        common.print_json({"folder": str(run.path), **result.to_dict(), **more})
    else:
        print_planned(run.folder.read(result), cost, front=front)


def print_planned(run: Snapshot, cost: str | None, *, front: bool = False) -> None:
    """Print the allocation within every budget, and the commands that may follow."""
    console, result = common.stdout(), run.result
    sensitivities = result.sensitivities
    console.print(f"\n[bold]{summarize_run(result)}[/]")
    for allocation in filter(None, map(result.allocation, result.memory_budgets)):
        console.print(f"\nWithin [bold]{describe_size(result.space, allocation.budget_bytes)}[/]\n")
        console.print(make_allocation_table(allocation, result))
        if not allocation.is_exact:
            console.print(
                "Too many groups are alike for an exact solution: a slightly better plan may exist."
            )
    if front:
        console.print()
        console.print(make_predicted_front_table(result))
    if sensitivities is not None and sensitivities.seconds:
        seconds = formatting.format_time(sensitivities.seconds)
        console.print(f"\nSensitivities of {len(result.space)} groups, measured in {seconds}.")
    if run.config is not None:
        console.print(f"Runs {formatting.describe_engine(run.config)}.", soft_wrap=True)
    common.print_next_steps(run)
    if cost is not None:
        console.print(f"What a search takes: {cost}.")


@common.with_settings()
def search(
    given: Mapping[str, Any],
    out: common.OutOption = None,
    dry_run: common.DryRunOption = False,
    workers: Annotated[
        int | None, option("--workers N", "Number of worker processes; default: none.", WHERE_PANEL, min=1)
    ] = None,
    executor: Annotated[
        str | None, option("--executor process|ray", "Where workers run; default: process.", WHERE_PANEL)
    ] = None,
    address: Annotated[str | None, option("--address URL", "Address of a Ray cluster.", WHERE_PANEL)] = None,
    batch: Annotated[int | None, option("--batch N", BATCH_HELP, WHERE_PANEL, min=1)] = None,
    as_json: common.JsonOption = False,
) -> None:
    """Search the bits and rank of every layer under a memory budget.

    Evaluates the uniform plans that fit first, so the result always says what was gained over them.
    Every finished evaluation is saved. The folder of a run in place of a config resumes that run: one
    that was broken off, or one that `qra plan` made.

    [bold]Example[/]

        qra search --model smollm2 --task arithmetic --memory 108MiB --evaluations 24 --out runs/a
    """
    config: Path | None = given["config"]
    if not any(given.values()) and out is None:
        raise BadInput("say what to search: --model and --task, a config, or the folder of a run to resume")
    resumed = RunFolder(config) if config is not None and RunFolder(config).has_run else None
    if resumed is not None and out not in (None, resumed.path):
        raise BadInput(f"{resumed.path} is a run and is resumed in place: remove --out")
    if resumed is not None:
        resumed.config()  # one that was begun from Python has none
    settings = common.read_settings(given, None if resumed is None else resumed.config_file)
    view = make_listener(not as_json)
    if dry_run:
        left = (
            None if resumed is None else max(0.0, settings.search.evaluations - resumed.read().result.spent)
        )
        _print_dry_run(settings, view, evaluations=left, as_json=as_json)
        return
    folder = resumed or RunFolder(out or make_folder_name(settings))
    of_workers = {"--executor": executor, "--address": address}
    if unused := [name for name, value in of_workers.items() if value is not None and not workers]:
        raise BadInput(
            f"{unused[0]} only says where workers run: add --workers and their number, or leave it out"
        )
    pool = Workers(workers, executor or "process", address) if workers else None
    try:
        with Run(folder.path, settings) as run:
            result = run.search(
                resume=resumed is not None,
                workers=pool,
                batch=batch,
                progress=view,
            )
    except KeyboardInterrupt:
        if folder.has_run:  # one whose search had not begun was taken away again
            command = f"qra search {shlex.quote(str(folder.path))}"
            view.say(f"Stopped; finished evaluations are saved. Resume: {command}")
        raise
    if as_json:
        common.print_json({"folder": str(folder.path), **result.to_dict()})
        return
    snapshot = folder.read(result)
    comparison = snapshot.comparison()
    console = common.stdout()
    console.print()
    console.print(render_result(result, comparison))
    common.print_next_steps(snapshot, comparison)


def _print_dry_run(
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
    for name, text in list_run_facts(facts, rows, config, is_plan=is_plan):
        grid.add_row(name, Text(text))
    console.print(grid)
    if facts["example"]:
        console.print("\n[bold]An example, as it is tuned on[/]")
        for learnt, parts in groupby(facts["example"], lambda piece: piece["learnt"]):
            text = "".join(piece["text"] for piece in parts)
            cut = "... " if len(text) > EXAMPLE_CHARACTERS else ""
            name, style = ("learnt", "bold") if learnt else ("given", "")
            # As a Python literal, which shows spaces and line ends.
            console.print(f"{name:8}{cut}{text[-EXAMPLE_CHARACTERS:]!r}", markup=False, style=style)
    console.print("\nNothing was run. Leave out --dry-run to go on.")
