"""`qra plan`: the plan that the sensitivities choose for a budget, in minutes and without any training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from qra_search.allocate.solve import solve_front
from qra_search.app.cli import common
from qra_search.app.cli.dry_run import print_dry_run
from qra_search.app.config import RunConfig
from qra_search.app.dry_run import describe_gain, estimate_cost
from qra_search.app.folder import RunFolder
from qra_search.app.report import formatting
from qra_search.app.report.finding import summarize_run
from qra_search.app.report.tables import make_allocation_table, make_predicted_front_table
from qra_search.app.report.terminal import print_next_steps
from qra_search.app.run import Run
from qra_search.app.settings import check_budget, make_folder_name
from qra_search.space.budgets import describe_size
from qra_search.study.result import SearchResult


@common.with_settings(*common.OF_SEARCH)
def plan(
    given: Mapping[str, Any],
    out: common.OutRun = None,
    front: Annotated[
        bool, common.option("--front", "Also print memory against predicted loss for every size.")
    ] = False,
    dry_run: common.DryRun = False,
    as_json: common.Json = False,
) -> None:
    """Choose bits and ranks for a budget from measured sensitivities alone, without training.

    Measures how sensitive every group is, solves the choice exactly, and says what is predicted to be
    gained over uniform plans of the same bytes. The run it leaves is tuned by `qra finetune` and searched further by
    `qra search RUN`.

    [bold]Example[/]

        qra plan --model smollm2 --task arithmetic --memory 95MiB --out runs/a
    """
    settings = common.read_settings(given)
    view = common.make_view(quiet=as_json)
    common.report_default_model(settings, view)
    if dry_run:
        check_budget(settings)
        print_dry_run(settings, view, is_plan=True, as_json=as_json)
        return
    with Run(out or make_folder_name(settings), settings) as run:
        result = run.choose_plan(progress=view)
        cost = estimate_cost(run.evaluator(), run.config.search.evaluations, is_measured=True)
    if as_json:
        sizes = solve_front(result.space, result.sensitivities) if front else []
        more = {"predicted_front": [allocation.to_dict() for allocation in sizes]} if front else {}
        common.print_json({"folder": str(run.path), **result.to_dict(), **more})
    else:
        print_planned(run.folder, run.config, result, cost, front=front)


def print_planned(
    folder: RunFolder, config: RunConfig, result: SearchResult, cost: str | None, *, front: bool = False
) -> None:
    """Print the allocation within every budget, and the commands that may follow."""
    console, space, sensitivities = common.stdout(), result.space, result.sensitivities
    console.print(f"\n[bold]{summarize_run(result)}[/]")
    for allocation in filter(None, map(result.allocation, result.memory_budgets)):
        console.print(f"\nWithin [bold]{describe_size(space, allocation.budget_bytes)}[/]\n")
        console.print(make_allocation_table(allocation, result))
    if front:
        console.print()
        console.print(make_predicted_front_table(result))
    if sensitivities is not None and sensitivities.seconds:
        console.print(
            f"\nSensitivities of {len(space)} groups, measured in {formatting.format_time(sensitivities.seconds)}."
        )
    console.print(f"Runs {formatting.format_engine(config)}.", soft_wrap=True)
    print_next_steps(console, folder, result)
    if cost is not None:
        console.print(f"What a search takes: {cost}.")
    console.print(f"What it may gain: {describe_gain(result.allocation())}.")
