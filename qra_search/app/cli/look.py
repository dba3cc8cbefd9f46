"""Commands that look at runs: the report, and the plan and the tunings in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape

from qra_search.app.cli import common
from qra_search.app.cli.common import argument, option
from qra_search.app.folder import RunFolder, read_plan_data
from qra_search.app.report import formatting
from qra_search.app.report.finding import make_comparison_headline, make_headline, summarize_run
from qra_search.app.report.page import write_page
from qra_search.app.report.tables import (
    TextTable,
    make_allocation_table,
    make_plan_table,
    make_record_table,
)
from qra_search.app.start import open_run
from qra_search.errors import convert_to_bad_input
from qra_search.schemas import format_level
from qra_search.space.budgets import describe_size
from qra_search.space.serialization import plan_to_dict, read_choices


def report(
    run: common.RunArgument,
    out: Annotated[
        Path | None, option("--out -o FILE", "Where to write it; default: report.html in the run's folder.")
    ] = None,
    as_json: common.JsonOption = False,
) -> None:
    """Write the HTML report of a run.

    It is one file that needs no network, and can be made anew at any time, also while a search is running.

    [bold]Example[/]

        qra report runs/a
    """
    with convert_to_bad_input():
        path = write_page(RunFolder(run).read(), out)
    if as_json:
        common.print_json({"report": str(path)})
    else:
        common.stdout().print(f"Report: [bold]{escape(str(path))}[/]", soft_wrap=True)


def show(
    run: common.RunArgument,
    other: Annotated[
        Path | None, argument("[OTHER]", "Another run or plan.json: show how the plans differ.")
    ] = None,
    tuning: Annotated[
        str | None, option("--tuning ID", "Select this tuning (an id, uniform or shuffled) from now on.")
    ] = None,
    as_json: common.JsonOption = False,
) -> None:
    """Show a run's plan layer by layer, its tunings, or how two plans differ.

    One tuning of the run is selected, together with the plans that were tuned beside it: the tuning with the
    most steps whose comparison is finished. The smallest of these plans that is as good as the best is
    exported and loaded. `--tuning` selects another tuning, which is then exported and loaded itself.

    [bold]Examples[/]

        qra show runs/a

        qra show runs/a runs/b
    """
    with convert_to_bad_input():
        if tuning is not None:
            with open_run(run) as opened:
                opened.select(tuning)
        snapshot = RunFolder(run).check().read()
        result = snapshot.result
        space = result.space
        comparison = snapshot.comparison()
        plan = snapshot.require_plan() if snapshot.selected is None else snapshot.selected.plan
    if other is not None:
        with convert_to_bad_input():
            one = read_choices(plan_to_dict(space, plan))
            two = read_choices(read_plan_data(other))
        if not as_json:
            shown = [snapshot, RunFolder(other).read()] if RunFolder(other).has_run else [snapshot]
            for each in shown:
                print(f"{each.folder.path}: {make_headline(each.result, each.comparison())}")
        _print_plan_differences(one, two, as_json=as_json)
        return
    if as_json:
        common.print_json(plan_to_dict(space, plan))
        return
    console = common.stdout()
    deployed = None if comparison is None else comparison.deployed
    plan = plan if deployed is None else deployed.plan
    answer = "" if comparison is None else make_comparison_headline(comparison)
    if answer:
        console.print(f"[bold]{escape(answer)}[/]")
    console.print(f"{escape(summarize_run(result, comparison, headline=answer))}\n")
    allocation = None if comparison is not None or result.candidates else result.allocation()
    if allocation is not None:
        console.print(make_allocation_table(allocation, result), "")
    console.print(f"{formatting.format_plan(plan, space)}, {describe_size(space, space.memory_bytes(plan))}")
    console.print(f"{formatting.format_level_counts(plan, space)}\n")
    console.print(make_plan_table(plan, space))
    if any(str(level) != format_level(level.name) for level in space.levels):
        console.print("; ".join(map(str, space.levels)))
    if snapshot.records:
        console.print("\n[bold]tunings[/]")
        ids = () if comparison is None else comparison.deployed_ids
        console.print(make_record_table(snapshot.records, space, snapshot.plan, ids))
    if deployed is not None:
        console.print(
            f"\nTuning {snapshot.find_tuning().id} is exported, loaded and shown. "
            "Use --tuning to select another."
        )
    if snapshot.config is not None:
        resident = formatting.format_resident_memory(snapshot.config, space.memory_bytes(plan), space.weights)
        console.print(f"\nRuns {formatting.describe_engine(snapshot.config)}. {resident}", soft_wrap=True)


def _print_plan_differences(one: Mapping[str, Any], two: Mapping[str, Any], *, as_json: bool) -> None:
    """Groups for which two plans choose differently, each by its level and rank."""
    names = dict.fromkeys([*one, *two])
    rows = [(name, one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)]
    if as_json:
        common.print_json([{"group": name, "first": first, "second": second} for name, first, second in rows])
        return
    texts = [
        (name, *(f"{format_level(c[0])}, rank {c[1]}" if c else "" for c in both)) for name, *both in rows
    ]
    common.stdout().print(TextTable("", ("group", "first", "second"), texts, left=("first", "second")))
    print(f"{len(rows)} of {len(names)} groups differ.")
