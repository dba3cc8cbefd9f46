"""Commands that look at runs: the report, the plan in the terminal, and a folder of runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape

from qra_search.cli import common
from qra_search.cli.common import argument, option
from qra_search.errors import BadInput, bad_input, describe
from qra_search.report import formatting
from qra_search.report.data import RunData
from qra_search.report.engine_support import takers_text
from qra_search.report.finding import said
from qra_search.report.layout import heat_maps
from qra_search.report.tables import overview_table
from qra_search.report.terminal.tables import strip
from qra_search.runs.comparison import read_test
from qra_search.runs.folder import RunFolder, find_runs
from qra_search.space.budgets import Budget, describe_size
from qra_search.space.serialization import plan_to_dict
from qra_search.study.result import SearchResult
from qra_search.workflow.finetune import place_of
from qra_search.workflow.run import write_reports


def report(
    runs: Annotated[list[Path], argument("RUN...", "Folders of runs; several are compared.")],
    out: Annotated[
        Path | None,
        option(
            "--out -o FILE", "Where to write it; default: report.html in the run's folder, or compare.html for several."
        ),
    ] = None,  # fmt: skip
    as_json: common.Json = False,
) -> None:
    """Write the HTML report of a run, or one that compares several.

    It is one file that needs no network, and can be made anew at any time, also while a search is running.

    [bold]Example[/]

        qra report runs/a runs/b --out compare.html
    """
    path = write_reports([RunFolder(run) for run in runs], out)
    if as_json:
        common.emit({"report": str(path)})
    else:
        common.stdout().print(f"Report: [bold]{escape(str(path))}[/]", soft_wrap=True)


def show(
    run: common.Run,
    memory: Annotated[
        str | None,
        option("--memory SIZE", "Show the best plan within this budget; default: the plan that is handed over."),
    ] = None,
    as_json: common.Json = False,
) -> None:
    """Show the plan of a run: bits, rank and sensitivity of every layer as strips.

    [bold]Example[/]

        qra show runs/a
    """
    memory = None if memory is None else Budget(memory, needs_unit=True)
    with bad_input():
        folder = RunFolder(run).check()
        result = folder.result()
        plan = result.chosen(memory) if memory is not None or result.memory_budgets or result.candidates else None
        if memory is None and folder.plan_file.is_file():
            plan = folder.plan()
    if plan is None:
        raise BadInput(
            f"{run} has no plan{f' within {memory}' if memory else ' yet'}: nothing that fits was evaluated; go on "
            f"with `qra search {run}`"
        )
    if as_json:
        common.emit(plan_to_dict(result.space, plan))
        return
    console = common.stdout()
    console.print(f"[bold]{escape(_headline(result, folder, memory))}[/]\n")
    size = describe_size(result.space, result.space.memory_bytes(plan))
    console.print(f"{formatting.plan_name(plan, result.space)}, {size}")
    console.print(f"{formatting.bits_counts(plan, result.space)}\n")
    for heat in heat_maps(result.space, plan, result.sensitivities):
        console.print(f"[bold]{heat.title.lower()}[/] ({heat.remark})")
        console.print(strip(result.space, heat), soft_wrap=True)
    if any(isinstance(name, str) for name in result.space.bits):
        console.print("; ".join(map(str, result.space.levels)))
    if folder.config_file.is_file():
        console.print(f"\n{takers_text(folder.config(), result.space, plan)}", soft_wrap=True)


def _headline(result: SearchResult, folder: RunFolder, memory: str | None) -> str:
    """What was found, by the comparison on test data where that is of the plan that is shown."""
    if memory is None:
        return said(result, read_test(folder.test()))
    limit = Budget(memory).bytes_in(result.space)
    return said(result, read_test(place_of(folder, result, limit, memory).test()), limit)


def runs(
    folder: Annotated[Path, argument("FOLDER", "Where to look, at any depth.", show_default=True)] = Path("runs"),
    as_json: common.Json = False,
) -> None:
    """List the runs in a folder: how far each is, and what it found.

    [bold]Example[/]

        qra runs runs
    """
    if not folder.is_dir():
        raise BadInput(f"no folder {folder}: give the one that holds the runs of `qra search --out`")
    read: list[RunData] = []
    unreadable: list[dict[str, Any]] = []
    for run in find_runs(folder):
        try:
            read.append(RunData.read(run))
        except Exception as error:  # one unreadable run must not hide the others
            unreadable.append({"run": str(run.path), "unreadable": describe(error)})
    if as_json:
        common.emit(sorted([*map(_facts, read), *unreadable], key=lambda row: row["run"]))
        return
    console = common.stdout()
    if read:
        console.print(overview_table(read, named=lambda run: run.folder))
    elif not unreadable:
        console.print(f"No runs in {folder}.", markup=False)
    for row in unreadable:
        console.print(f"{row['run']}: {row['unreadable']}", markup=False)


def _facts(run: RunData) -> dict[str, Any]:
    """How far a run is and what it found, as plain data."""
    result, found, planned = run.result, run.finding, run.planned
    rival = found if found and found.rival is not None else None
    return {
        "run": run.folder,
        "strategy": result.strategy,
        "seed": result.seed,
        "spent": result.spent,
        "evaluations": planned,
        "complete": planned is not None and result.spent >= planned,
        "failed": len(result.failures()),
        "data": found.data if found else None,
        "budget": found.budget if found else None,
        "loss": _finite(found.loss) if found else None,
        "memory_bytes": found.memory_bytes if found else None,
        "uniform_loss": _finite(rival.rival_loss) if rival else None,
        "gain": _finite(rival.gain) if rival else None,
    }


def _finite(x: float) -> float | None:
    """A figure as JSON has it: a tuning that failed has none."""
    return x if math.isfinite(x) else None
