"""`qra plans`: compare and edit plans."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from qra_search.cli import common
from qra_search.cli.common import argument, option
from qra_search.errors import BadInput, bad_input
from qra_search.files import write_json
from qra_search.log.recorded import recorded_space
from qra_search.log.trial_log import TrialLog
from qra_search.runs.folder import RunFolder, plan_data, read_plan
from qra_search.space.budgets import describe_size
from qra_search.space.levels import level_words, read_name
from qra_search.space.memory import format_bytes
from qra_search.space.serialization import choices_in, plan_to_dict
from qra_search.space.space import Plan, SearchSpace

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
    rows = [{"group": n, "first": one.get(n), "second": two.get(n)} for n in names if one.get(n) != two.get(n)]
    if as_json:
        common.emit({"differences": rows, "first_bytes": sizes[0], "second_bytes": sizes[1]})
        return
    for row in rows:
        before, after = (
            f"{level_words(choice[0])}, rank {choice[1]}" if choice else "not there"
            for choice in (one.get(row["group"]), two.get(row["group"]))
        )
        print(f"{row['group']}: {before} -> {after}")
    texts = " and ".join("unknown bytes" if n is None else format_bytes(n) for n in sizes)
    print(f"{len(rows)} of {len(names)} groups differ; the plans take {texts}.")


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
    tuned = RunFolder(out.parent)
    if out.name == tuned.plan_file.name and tuned.adapter.is_dir():
        raise BadInput(
            f"{out} says which plan the adapter beside it was tuned for: give another file with --out, and tune that "
            f"with `qra finetune {out.parent} --plan FILE`"
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
    if not equals or not pattern or not (rank_text.isdigit() or not rank_text):
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
    with bad_input(), TrialLog(folder.check().log_file) as log:
        return recorded_space(log)
