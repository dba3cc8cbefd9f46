"""`qra export`: a tuned run written in the format of another tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from qra_search import plugins
from qra_search.cli import common
from qra_search.cli.common import argument, option
from qra_search.engines import ENGINES, room_for
from qra_search.errors import BadInput, bad_input
from qra_search.files import tensor_names
from qra_search.integrations.hub import check_hub, push_export
from qra_search.report.columns import columns
from qra_search.runs.folder import RunFolder

PAIR = "a name and a value are needed, such as merge=true"


def export(
    run: Annotated[Path | None, argument("RUN", "Folder of a tuned run.")] = None,
    format: Annotated[
        str, option("--format -f F", "A format; --list shows all. Default: that of the engine searched for.")
    ] = "",
    out: Annotated[Path | None, option("--out -o PATH", "Where to write; default: RUN/exports/FORMAT.")] = None,
    options: Annotated[
        list[str] | None,
        option("--option NAME=VALUE", "An option of the format, such as merge=true or bits=4,8."),
    ] = None,
    check_only: Annotated[bool, option("--check", "Only say whether the plan can be written.")] = False,
    push_to_hub: common.Push = None,
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
        table = columns("format", "what it is", left=("format", "what it is"))
        for row in found.items():
            table.add_row(*row)
        common.stdout().print(table)
        return
    if run is None:
        raise BadInput("RUN is missing: give the folder of a run that `qra finetune` has tuned, or --list")
    searched_for = None if format else _engine(run)
    engine = None if searched_for is None else ENGINES[searched_for]
    with bad_input():
        given = dict(common.pair(text, "--option", PAIR) for text in options or [])
        if engine is not None:
            format, given = engine.format, {**engine.options, **given}
        _check_tuned(format, run)
        place = out or run / "exports" / format
        if not check_only and place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise BadInput(f"{place} exists already: give another place with --out, or remove it first")
        exporter = plugins.load("exporters", format).with_options(
            {name.replace("-", "_"): value for name, value in given.items()}
        )
        if check_only:
            reasons = exporter.reasons(run)
            if reasons:
                raise BadInput(f"{run} cannot be exported as {format}: " + "; ".join(reasons))
            print(f"{run} can be exported as {format}.")
            return
        if push_to_hub is not None:
            check_hub(push_to_hub)
        done = exporter.export(run, place)
    serve = "" if searched_for is None else serve_command(searched_for, done.path)
    if as_json:
        common.emit({**vars(done), "path": str(done.path), "notes": list(done.notes)})
    else:
        print(f"{done.path}: {_compared(done)}")
        for note in done.notes:
            print(f"  - {note}")
        if serve:
            print(f"serve it with: {serve}")
    if push_to_hub is not None:
        address = push_export(RunFolder(run), done.path, push_to_hub, serve=serve)
        common.stderr().print(f"uploaded: {address}", soft_wrap=True)


def serve_command(name: str, out: Path) -> str:
    """The command that serves an export for an engine."""
    file = out / "adapter" / "adapter_config.json"
    config: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    rank = max([config.get("r", 1), *config.get("rank_pattern", {}).values()])
    return ENGINES[name].serve.format(out=out, rank=room_for(name, rank))


def _engine(run: Path) -> str:
    """Name of the engine that a run was searched for.

    Raises:
        BadInput: there is no such folder, or none; the message names the formats.
    """
    if not run.is_dir():
        raise BadInput(f"{run} is no folder: give that of a run, tuned by `qra finetune`")
    name = RunFolder(run).engine()
    if name is None:
        raise BadInput(
            f"--format is missing, and {run} was searched for no engine: give one of "
            f"{', '.join(plugins.names('exporters'))}"
        )
    return name


def _check_tuned(format: str, run: Path) -> None:
    """Raises ValueError for a folder with nothing tuned, or what was cut off, before seconds of loading libraries."""
    if format in plugins.names("exporters"):
        tuned = RunFolder(run)
        weights = tuned.path / "quantized.safetensors"
        if missing := [file.name for file in (tuned.plan_file, tuned.adapter) if not file.exists()]:
            raise BadInput(f"{run} holds no tuned plan, it lacks {', '.join(missing)}: run `qra finetune` on it first")
        if weights.is_file():
            tensor_names(weights)


def _compared(done: Any) -> str:
    if done.largest_logit_difference is None:
        return "written"
    if done.largest_logit_difference == 0:
        return "the same logits as the tuned model's, exactly"
    return (
        f"logits differ by up to {done.largest_logit_difference:.3g} (the largest is {done.largest_logit:.3g}), "
        f"and the likeliest token is the same at {done.same_next_token:.0%} of the positions"
    )
