"""`qra export`: a tuned run written in the format of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from qra_search import plugins
from qra_search.cli import common
from qra_search.cli.common import argument, option
from qra_search.engines import ENGINES, Engine
from qra_search.errors import BadInput, bad_input
from qra_search.files import tensor_names
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
        for name, summary in {} if as_json else found.items():
            print(f"{name:20s}{summary}")
        return
    if run is None:
        raise BadInput("RUN is missing: give the folder of a run that `qra finetune` has tuned, or --list")
    engine = None if format else _engine(run)
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
        done = exporter.export(run, place)
    if as_json:
        common.emit({**vars(done), "path": str(done.path), "notes": list(done.notes)})
        return
    print(f"{done.path}: {_compared(done)}")
    for note in done.notes:
        print(f"  - {note}")
    if engine is not None:
        print(f"serve it with: {engine.serve.format(out=done.path)}")


def _engine(run: Path) -> Engine:
    """The engine that a run was searched for.

    Raises:
        BadInput: none; the message names the formats.
    """
    folder = RunFolder(run)
    name = folder.config().engine if folder.config_file.is_file() else None
    if name is None:
        raise BadInput(
            f"--format is missing, and {run} was searched for no engine: give one of "
            f"{', '.join(plugins.names('exporters'))}"
        )
    return ENGINES[name]


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
