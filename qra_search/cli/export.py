"""`qra export`: a tuned run written in the format of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from qra_search import plugins
from qra_search.cli import common
from qra_search.cli.common import argument, option
from qra_search.errors import BadInput
from qra_search.report.table import TextTable
from qra_search.workflow.export import serve_command
from qra_search.workflow.start import open_run


def export(
    run: Annotated[Path | None, argument("RUN", "Folder of a tuned run.")] = None,
    tuning: common.Tuning = None,
    format: Annotated[
        str | None, option("--format -f F", "A format; --list shows all. Default: that of the run's engine, or peft.")
    ] = None,
    out: Annotated[Path | None, option("--out -o PATH", "Where to write; default: exports/FORMAT in RUN.")] = None,
    options: Annotated[
        list[str] | None, option("--option NAME=VALUE", "An option of the format, such as dtype=float32.")
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
    given = dict(common.read_pair(text, "--option", "dtype=float32") for text in options or [])
    with open_run(run) as opened:
        if check_only:
            name = opened.check_export(format, tuning=tuning, options=given)
            if as_json:
                common.emit({"run": str(run), "format": name})
            else:
                print(f"{run} can be exported as {name}.")
            return
        done, engine = opened.export(format, out, tuning=tuning, options=given), opened.config.engine
    if as_json:
        common.emit({**vars(done), "path": str(done.path), "notes": list(done.notes)})
        return
    print(f"{done.path}: {_describe_difference(done)}")
    for note in done.notes:
        print(f"  - {note}")
    if engine is not None and format is None:
        print(f"serve it with: {serve_command(engine, done.path)}")


def _describe_difference(done: Any) -> str:
    if done.largest_logit_difference is None:
        return "written"
    if done.largest_logit_difference == 0:
        return "the same logits as the tuned model's, exactly"
    return (
        f"logits differ by up to {done.largest_logit_difference:.3g} (the largest is {done.largest_logit:.3g}), "
        f"and the likeliest token is the same at {done.same_next_token:.0%} of the positions"
    )
