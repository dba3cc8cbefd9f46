"""`qra export`: a tuned run written in the format of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from qra_search import plugins
from qra_search.cli import common
from qra_search.cli.common import argument, option
from qra_search.errors import BadInput, bad_input
from qra_search.report.table import TextTable
from qra_search.runs.folder import RunFolder
from qra_search.workflow.export import export_target, export_tuning, make_exporter, serve_command
from qra_search.workflow.start import open_run

PAIR = "a name and a value are needed, such as dtype=float32"


def export(
    run: Annotated[Path | None, argument("RUN", "Folder of a tuned run.")] = None,
    tuning: common.Tuning = None,
    format: Annotated[
        str, option("--format -f F", "A format; --list shows all. Default: that of the run's engine, or peft.")
    ] = "",
    out: Annotated[Path | None, option("--out -o PATH", "Where to write; default: exports/FORMAT in RUN.")] = None,
    options: Annotated[
        list[str] | None,
        option("--option NAME=VALUE", "An option of the format, such as dtype=float32."),
    ] = None,
    check_only: Annotated[bool, option("--check", "Only say whether the plan can be written.")] = False,
    as_list: Annotated[bool, option("--list", "List the formats.")] = False,
    as_json: common.Json = False,
) -> None:
    """Write a tuned run for another tool, and say by how much its logits differ.

    [bold]Example[/]

        qra export runs/a --format gguf
    """
    if as_list:
        found = {name: plugins.load("exporters", name).summary for name in plugins.names("exporters")}
        if as_json:
            common.emit(found)
            return
        heads = ("format", "what it is")
        common.stdout().print(TextTable("", heads, list(found.items()), left=heads))
        return
    if run is None:
        raise BadInput("RUN is missing: give the folder of a run that `qra finetune` has tuned, or --list")
    given = dict(common.pair(text, "--option", PAIR) for text in options or [])
    target = export_target(RunFolder(run), format or None, out, given, tuning=tuning)
    with open_run(run) as opened:
        opened.write_base(target.tuning)
    if check_only:
        with bad_input():
            if reasons := make_exporter(target).reasons(target.tuning.path):
                raise BadInput(f"{run} cannot be exported as {target.format}: " + "; ".join(reasons))
        if as_json:
            common.emit({"run": str(run), "format": target.format})
        else:
            print(f"{run} can be exported as {target.format}.")
        return
    done = export_tuning(target)
    if as_json:
        common.emit({**vars(done), "path": str(done.path), "notes": list(done.notes)})
        return
    print(f"{done.path}: {_compared(done)}")
    for note in done.notes:
        print(f"  - {note}")
    if target.engine is not None:
        print(f"serve it with: {serve_command(target.engine, done.path)}")


def _compared(done: Any) -> str:
    if done.largest_logit_difference is None:
        return "written"
    if done.largest_logit_difference == 0:
        return "the same logits as the tuned model's, exactly"
    return (
        f"logits differ by up to {done.largest_logit_difference:.3g} (the largest is {done.largest_logit:.3g}), "
        f"and the likeliest token is the same at {done.same_next_token:.0%} of the positions"
    )
