"""What the commands share: their options, the config made of them, and the consoles."""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.markup import escape

from qra_search.app.config import RunConfig, make_settings, read_pairs
from qra_search.app.folder import Snapshot
from qra_search.app.report.finding import Finding, list_next_steps
from qra_search.app.report.tables import TEXT_COLUMNS
from qra_search.engines import ENGINES
from qra_search.errors import BadInput

WHAT_PANEL, HOW_PANEL, WHERE_PANEL = "What is searched", "How it is searched", "Where it goes"


def option(usage: str, help: str, panel: str | None = None, **more: Any) -> Any:
    """An option by its names and what it takes, such as `--out -o FILE`."""
    names = [word for word in usage.split() if word.startswith("-")]
    metavar = " ".join(usage.split()[len(names) :]) or None
    more = {"show_default": False} | more
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, **more)


def argument(metavar: str, help: str) -> Any:
    """An argument by what it takes."""
    return typer.Argument(metavar=metavar, help=help, show_default=False)


def _make_setting(path: str, kind: Any, usage: str, panel: str = WHAT_PANEL) -> tuple[str, Any]:
    """A field of the config and its option, whose help is the field's description."""
    section, _, field = path.partition(".")
    info = RunConfig.model_fields[section]
    info = info.default.__class__.model_fields[field] if field else info
    help = " ".join((info.description or "").split())
    return path, Annotated[kind | None, option(usage, help[:1].upper() + help[1:], panel)]


SetOption = Annotated[
    list[str] | None,
    option(
        "--set FIELD=VALUE", "Any field of the config (see `qra schema`): evaluation.steps=20.", HOW_PANEL
    ),
]
DryRunOption = Annotated[
    bool,
    option("--dry-run", "Only print the config, the space, the cost and a training example.", WHERE_PANEL),
]
JsonOption = Annotated[bool, option("--json", "Print the result as JSON, and nothing else.")]
RunArgument = Annotated[Path, argument("RUN", "Folder of a run.")]
OutOption = Annotated[
    Path | None, option("--out -o RUN", "Folder of the run; default: a new one below runs/.", WHERE_PANEL)
]
COLUMNS_OPTION = option(
    "--columns FIELD=COLUMN,...",
    "Which of your columns to read. prompt=question takes the prompt from the column question, and "
    "answer={intent,words} makes JSON of two columns.",
    WHAT_PANEL,
)
SETTINGS: dict[str, tuple[str, Any]] = {
    "config": ("", Annotated[Path | None, argument("[CONFIG.yaml]", "A config file; options win over it.")]),
    "model": _make_setting("model.name", str, "--model -m M"),
    "task": _make_setting("task.name", str, "--task -t T"),
    "data": _make_setting("task.data", str, "--data PATH"),
    "columns": ("task.options.columns", Annotated[str | None, COLUMNS_OPTION]),
    "metric": _make_setting("task.metrics", list[str], "--metric FILE.py:NAME"),
    "memory": _make_setting("search.memory", list[str], "--memory SIZE"),
    "bits": _make_setting("space.bits", str, "--bits 2,2.5,3"),
    "ranks": _make_setting("space.ranks", str, "--ranks 2,4,8,16,32"),
    "granularity": _make_setting("space.granularity", str, "--granularity module|expert|layer|fused"),
    "engine": _make_setting("engine", str, f"--engine {'|'.join(ENGINES)}"),
    "backend": _make_setting("quantization.backend", str, "--backend NAME|2=NAME,4=NAME"),
    "evaluations": _make_setting("search.evaluations", float, "--evaluations -n N", HOW_PANEL),
    "strategy": _make_setting("search.strategy", str, "--strategy S", HOW_PANEL),
    "seed": _make_setting("search.seed", int, "--seed N", HOW_PANEL),
    "device": _make_setting("model.device", str, "--device D", HOW_PANEL),
    "evaluator": _make_setting("evaluator", str, "--evaluator E", HOW_PANEL),
    "sets": ("", SetOption),
}
"""The options that say what a run is, in the order of the help, each with the field of the config that it sets."""
SEARCH_SETTINGS = ("evaluations", "strategy")
"""Settings that only a search has."""


def read_settings(values: Mapping[str, Any], config: Path | None = None) -> RunConfig:
    """The config of a file (default: the one given, or the defaults) with the options of `SETTINGS`, which win; raises
    BadInput for a value that cannot be used."""
    given = {
        name: OPTION_PARSERS[name](value) if name in OPTION_PARSERS else value
        for name, value in values.items()
        if value is not None
    }
    file, sets = given.pop("config", None), given.pop("sets", {})
    fields = {SETTINGS[name][0]: value for name, value in given.items()}
    if twice := next((name for name in given if SETTINGS[name][0] in sets), None):
        raise BadInput(f"give --{twice} or --set {SETTINGS[twice][0]}, not both")
    return make_settings(config or file, fields | sets)


def with_settings(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `SETTINGS`, but for some, before its own; it gets them as the mapping `given`."""
    shared = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)
        for name, (_, annotation) in SETTINGS.items()
        if name not in left_out
    ]

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run_command(**values: Any) -> None:
            command(given={p.name: values.pop(p.name) for p in shared}, **values)

        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "given"]
        run_command.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
        run_command.__annotations__ = {p.name: p.annotation for p in (*own, *shared)}
        return run_command

    return wrap


def stdout() -> Console:
    return Console(highlight=False, emoji=False, width=_get_width(sys.stdout))


def stderr() -> Console:
    """Where remarks go."""
    return Console(stderr=True, highlight=False, emoji=False, width=_get_width(sys.stderr))


def _get_width(stream: TextIO) -> int | None:
    """Columns of what is printed; None: those of the terminal, or of the variable COLUMNS."""
    return None if stream.isatty() or "COLUMNS" in os.environ else TEXT_COLUMNS


def print_next_steps(run: Snapshot, found: Finding | None = None) -> None:
    """Print where the report is, and the commands that may follow."""
    console = stdout()
    console.print(f"Report: [bold]{escape(str(run.folder.report_file))}[/]", soft_wrap=True)
    for what, command in list_next_steps(run, found):
        console.print(f"  {what + ':':28}  [bold]{escape(command)}[/]", soft_wrap=True)


def print_json(data: Any) -> None:
    """Print a result as JSON, whole or not at all."""
    print(json.dumps(data, indent=1, allow_nan=False))


def read_numbers(option: str, text: str) -> list[float]:
    """Numbers that are separated by commas, whole ones as integers; raises BadInput for anything else."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"{option} is {text!r}: expected numbers separated by commas, such as 2,3,4") from None
    return [int(number) if number.is_integer() else number for number in numbers]


def _read_columns(text: str) -> dict[str, Any]:
    parts = re.split(r",(?![^{}]*\})", text)  # not at the commas of `answer={intent,words}`
    columns = read_pairs(parts, "--columns", "prompt=question,answer=reply")
    return {field: list(c) if isinstance(c, dict) else str(c) for field, c in columns.items()}


def _read_backend(text: str) -> Any:
    return read_pairs(text.split(","), "--backend", "2=reference,4=bitsandbytes") if "=" in text else text


OPTION_PARSERS: dict[str, Callable[[Any], Any]] = {
    "sets": read_pairs,
    "bits": functools.partial(read_numbers, "--bits"),
    "ranks": functools.partial(read_numbers, "--ranks"),
    "columns": _read_columns,
    "backend": _read_backend,
}
"""Of options whose text is not the value of the config."""
