"""Commands that look at runs: the report, the plan in the terminal, a folder of runs; plans compared and edited."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from qra_search.cli import common
from qra_search.cli.common import argument, option
from qra_search.errors import BadInput, bad_input, describe
from qra_search.files import write_json
from qra_search.report import formatting
from qra_search.report.data import RunData
from qra_search.report.engine_support import takers_text
from qra_search.report.finding import said
from qra_search.report.layout import heat_maps
from qra_search.report.tables import overview_table
from qra_search.report.terminal.tables import strip
from qra_search.runs.comparison import read_test
from qra_search.runs.folder import RunFolder, find_runs
from qra_search.runs.plan_file import plan_data, read_plan
from qra_search.space.budgets import check_budget_text, describe_size, resolve_budget
from qra_search.space.levels import level_words, read_name
from qra_search.space.memory import format_bytes
from qra_search.space.serialization import choices_in, plan_to_dict
from qra_search.space.space import Plan, SearchSpace
from qra_search.study.result import SearchResult, finite
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
    memory = None if memory is None else check_budget_text(memory, needs_unit=True)
    with bad_input():
        folder = RunFolder(run).check()
        result = folder.result()
        plan = folder.plan() if memory is None else result.chosen(resolve_budget(result.space, memory))
    if plan is None:
        raise BadInput(
            f"{run} has no plan within {memory}: none that fits was evaluated; go on with `qra search {run}`"
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
    limit = resolve_budget(result.space, memory)
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
        "loss": finite(found.loss) if found else None,
        "memory_bytes": found.memory_bytes if found else None,
        "uniform_loss": finite(rival.rival_loss) if rival else None,
        "gain": finite(rival.gain) if rival else None,
    }


# -- plans -----------------------------------------------------------------------------------------
plans = typer.Typer(help="Compare and edit plans.", no_args_is_help=False)

PlanPath = Annotated[Path, argument("PLAN", "A plan.json, or the folder of a run.")]


@plans.command("diff")
def diff(first: PlanPath, second: PlanPath, as_json: common.Json = False) -> None:
    """Say in which groups two plans differ, and by how many bytes.

    [bold]Example[/]

        qra plans diff runs/a runs/b/plan.json
    """
    plans = [plan_data(path) for path in (first, second)]
    with bad_input():
        one, two = map(choices_in, plans)
    sizes = [_bytes(*side) for side in zip((first, second), plans, strict=True)]
    names = list(dict.fromkeys([*one, *two]))
    differing = [name for name in names if one.get(name) != two.get(name)]
    if as_json:
        rows = [{"group": name, "first": one.get(name), "second": two.get(name)} for name in differing]
        common.emit({"differences": rows, "first_bytes": sizes[0], "second_bytes": sizes[1]})
        return
    for name in differing:
        before, after = (
            f"{level_words(choice[0])}, rank {choice[1]}" if choice else "not there"
            for choice in (one.get(name), two.get(name))
        )
        print(f"{name}: {before} -> {after}")
    texts = " and ".join("unknown bytes" if n is None else format_bytes(n) for n in sizes)
    print(f"{len(differing)} of {len(names)} groups differ; the plans take {texts}.")


@plans.command("edit")
def edit(
    plan: PlanPath,
    changes: Annotated[
        list[str],
        option(
            "--set GROUPS=BITS:RANK",
            "A choice for the groups of a pattern, such as '*.v_proj=8:16' or 'layers.0.*=4:'.",
        ),
    ],  # fmt: skip
    out: Annotated[Path, option("--out -o FILE", "Where to write it.")],
    run: Annotated[Path | None, option("--run RUN", "The run whose space the plan is of.")] = None,
    as_json: common.Json = False,
) -> None:
    """Write a plan with other bits or ranks for some groups.

    [bold]Example[/]

        qra plans edit runs/a --set '*.v_proj=8:16' --out mine.json
    """
    space = _space(plan, run)
    changed = read_plan(space, plan)
    for change in changes:
        changed = _changed(space, changed, change)
    own = RunFolder(out.parent)
    if out.name == own.plan_file.name and (own.exists or own.adapter.is_dir()):
        what = "the adapter beside it was tuned for" if own.adapter.is_dir() else "the run found"
        raise BadInput(
            f"{out} says which plan {what}: give another file with --out, and tune that with "
            f"`qra finetune {out.parent} --plan FILE`"
        )
    with bad_input():
        write_json(out, plan_to_dict(space, changed))
    size = space.memory_bytes(changed)
    if as_json:
        common.emit({"plan": str(out), "memory_bytes": size})
    else:
        print(f"{out}: {describe_size(space, size)}")


def _bytes(path: Path, data: dict[str, Any]) -> int | None:
    """Bytes of a plan: by the space of the run that it lies in, else as its file says; None if that says nothing."""
    if RunFolder(path if path.is_dir() else path.parent).exists:
        space = _space(path, None)
        return space.memory_bytes(read_plan(space, path))
    size = data.get("memory_bytes")
    return size if isinstance(size, int) else None


def _changed(space: SearchSpace, plan: Plan, change: str) -> Plan:
    pattern, equals, choice = change.rpartition("=")
    bits_text, _, rank_text = choice.partition(":")
    hits = [i for i, name in enumerate(space.names) if fnmatchcase(name, pattern)]
    # Embeddings have levels of their own: a pattern that meets linears too is meant for these.
    hits = [i for i in hits if not space.groups[i].is_embedding] or hits
    if not equals or not pattern or not (bits_text or rank_text) or not (rank_text.isdecimal() or not rank_text):
        raise BadInput(f"--set is {change!r}: GROUPS=BITS:RANK is needed, such as '*.v_proj=8:16' or '*.v_proj=nf4:'")
    if not hits:
        raise BadInput(f"--set {change!r}: no group is named {pattern!r}; names are such as {space.names[0]!r}")
    with bad_input():
        level = space.level(read_name(bits_text)).name if bits_text else None
    bits, ranks = list(plan.bits), list(plan.ranks)
    for i in hits:
        bits[i] = bits[i] if level is None else level
        ranks[i] = int(rank_text) if rank_text else ranks[i]
    new = Plan(tuple(bits), tuple(ranks))
    with bad_input():
        space.encode(new)
    return new


def _space(plan: Path, run: Path | None) -> SearchSpace:
    folder = RunFolder(run or (plan if plan.is_dir() else plan.parent))
    if run is None and not folder.exists:
        raise BadInput(f"{plan} does not lie in the folder of a run: say with --run whose space it is of")
    with bad_input():
        return folder.result().space
