"""Commands that look at runs: the report, the plan in the terminal, runs side by side, a folder of runs, the log."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape
from rich.table import Table

from qra_search.cli import common
from qra_search.cli.common import argument, option
from qra_search.config import differences
from qra_search.errors import BadInput, bad_input, describe, one_line
from qra_search.report import formatting
from qra_search.report.columns import columns
from qra_search.report.data import RunData
from qra_search.report.engine_support import takers_text
from qra_search.report.finding import said
from qra_search.report.layout import heat_maps
from qra_search.report.terminal.tables import strip
from qra_search.runs.comparison import read_test
from qra_search.runs.folder import RunFolder, find_runs
from qra_search.space.budgets import budget_in, describe_size
from qra_search.space.memory import format_bytes
from qra_search.space.serialization import plan_to_dict
from qra_search.study.result import SearchResult
from qra_search.workflow.finetune import place_of
from qra_search.workflow.run import write_reports

Runs = Annotated[list[Path], argument("RUN...", "Folders of runs; several are compared.")]


def report(
    runs: Runs,
    out: Annotated[
        Path | None,
        option(
            "--out -o FILE", "Where to write it; default: report.html in the run's folder, or compare.html for several."
        ),
    ] = None,  # fmt: skip
    figures: Annotated[
        bool, option("--figures", "Write the charts as SVG and PNG as well, into a folder beside it.")
    ] = False,
    as_json: common.Json = False,
) -> None:
    """Write the HTML report of a run, or one that compares several.

    It is one file that needs no network, and can be made anew at any time, also while a search is running.

    [bold]Example[/]

        qra report runs/a runs/b --out compare.html
    """
    path, *written = write_reports([RunFolder(run) for run in runs], out, figures=figures)
    if as_json:
        common.emit({"report": str(path), "figures": [str(file) for file in written]})
        return
    console = common.stdout()
    console.print(f"Report: [bold]{escape(str(path))}[/]", soft_wrap=True)
    for file in written:
        console.print(f"Figure: {file}", soft_wrap=True, markup=False)


def show(
    run: common.Run,
    memory: Annotated[
        str | None,
        option("--memory SIZE", "Show the best plan within this budget; default: the plan that is handed over."),
    ] = None,
    as_json: common.Json = False,
) -> None:
    """Show the plan of a run: bits and rank of every layer as strips.

    [bold]Example[/]

        qra show runs/a
    """
    common.check_unit(memory)
    (folder,) = _checked([run])
    with bad_input():
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
    for heat in heat_maps(result.space, plan):
        console.print(f"[bold]{heat.ramp}[/]")
        console.print(strip(result.space, heat), soft_wrap=True)
    if any(isinstance(name, str) for name in result.space.bits):
        console.print("; ".join(map(str, result.space.levels)))
    if folder.config_file.is_file():
        console.print(f"\n{takers_text(folder.config(), result.space, plan)}", soft_wrap=True)


def _headline(result: SearchResult, folder: RunFolder, memory: str | None) -> str:
    """What was found, by the comparison on test data where that is of the plan that is shown."""
    if memory is None:
        return said(result, read_test(folder.test()))
    limit = budget_in(result.space, memory)
    return said(result, read_test(place_of(folder, result, limit, memory).test()), limit)


def compare(runs: Runs, as_json: common.Json = False) -> None:
    """Put runs side by side: their findings, and the settings in which they differ.

    [bold]Example[/]

        qra compare runs/a runs/b
    """
    folders = _checked(runs)
    if len(folders) < 2:
        raise BadInput(f"one run, {folders[0].path}, is nothing to compare: give two or more, or use qra show")
    rows = [_row(folder) for folder in folders]
    configs = [folder.config() for folder in folders if folder.config_file.is_file()]
    changed: dict[str, list[Any]] = {}
    if len(configs) == len(folders):
        for field in dict.fromkeys(field for other in configs[1:] for field in differences(configs[0], other)):
            changed[field] = [_field(config.model_dump(mode="json"), field) for config in configs]
    if as_json:
        common.emit({"runs": rows, "differences": changed})
        return
    console = common.stdout()
    console.print(_table(rows))
    if changed:
        console.print("\n[bold]They differ in[/]")
        for field, values in changed.items():
            console.print(f"  {field}: {' | '.join(one_line(str(v), 60) for v in values)}", markup=False)
    best_of = [r for r in rows if r["loss"] is not None]
    if len({r["budget"] for r in best_of}) == 1 and len(best_of) > 1 and len({r["data"] for r in best_of}) == 1:
        low = min(best_of, key=lambda r: r["loss"])
        loss = formatting.loss_text(low["loss"])
        console.print(f"Lowest loss within the same budget: [bold]{escape(low['run'])}[/], {loss}.")


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
    rows = []
    for run in find_runs(folder):
        try:
            rows.append(_row(run))
        except Exception as error:  # one unreadable run must not hide the others
            rows.append({"run": str(run.path), "unreadable": describe(error)})
    if as_json:
        common.emit(rows)
    elif not rows:
        common.stdout().print(f"No runs in {folder}.", markup=False)
    else:
        common.stdout().print(_table([r for r in rows if "unreadable" not in r]))
        for row in rows:
            if "unreadable" in row:
                common.stdout().print(f"{row['run']}: {row['unreadable']}", markup=False)


def _checked(paths: list[Path]) -> list[RunFolder]:
    with bad_input():
        return [RunFolder(path).check() for path in paths]


def _row(folder: RunFolder) -> dict[str, Any]:
    run = RunData.read(folder)
    result, found, planned = run.result, run.finding, run.identity.get("evaluations")
    rival = found if found and found.rival is not None else None
    return {
        "run": str(folder.path),
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


def _table(rows: list[dict[str, Any]]) -> Table:
    heads = ("run", "strategy", "spent", "budget", "loss", "uniform", "gain", "data")
    table = columns(*heads, left=("run", "strategy", "data"))
    table.columns[0].style, table.columns[0].overflow = "bold", "fold"
    for r in rows:
        planned = "" if r["evaluations"] is None else f"/{formatting.evaluations_text(r['evaluations'])}"
        table.add_row(
            escape(r["run"]),
            f"{r['strategy']}, seed {r['seed']}",
            formatting.evaluations_text(r["spent"]) + planned,
            format_bytes(r["budget"]) if r["budget"] else "",
            formatting.loss_text(r["loss"]) if r["loss"] is not None else "none yet",
            formatting.loss_text(r["uniform_loss"]) if r["uniform_loss"] is not None else "",
            formatting.percent(r["gain"]) if r["gain"] is not None and r["gain"] > 0 else "",
            r["data"] or "",
        )
    return table


def _field(data: Any, path: str) -> Any:
    for part in path.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data
