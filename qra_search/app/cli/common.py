"""What the commands share: their options, the config made of them, and the consoles."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO, get_args

import typer
from rich.console import Console
from rich.markup import escape

from qra_search import plugins
from qra_search.app.compare import Against as AgainstName
from qra_search.app.config import RunConfig, read_yaml
from qra_search.app.folder import RunFolder
from qra_search.app.report.finding import Finding, list_next_steps
from qra_search.app.report.live import ConsoleView
from qra_search.app.report.tables import WIDTH
from qra_search.app.settings import FIELDS, make_settings
from qra_search.app.tracking import TRACKERS
from qra_search.engines import ENGINES
from qra_search.errors import BadInput
from qra_search.sections import DEFAULT_EVALUATOR
from qra_search.study.listener import Listener
from qra_search.study.result import SearchResult

WHAT, HOW, WHERE = "What is searched", "How it is searched", "Where it goes"


def complete(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completes an option by names."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def option(
    usage: str, help: str, panel: str | None = None, *, show_default: bool = False, **more: Any
) -> Any:
    """An option by its names and what it takes, such as `--out -o FILE`."""
    names = [word for word in usage.split() if word.startswith("-")]
    metavar = " ".join(usage.split()[len(names) :]) or None
    return typer.Option(
        *names, metavar=metavar, help=help, rich_help_panel=panel, show_default=show_default, **more
    )


def argument(metavar: str, help: str, *, show_default: bool = False, **more: Any) -> Any:
    """An argument by what it takes."""
    return typer.Argument(metavar=metavar, help=help, show_default=show_default, **more)


def _setting(
    kind: Any, usage: str, help: str, panel: str = WHAT, *, names: Callable[[], Iterable[str]] | None = None
) -> Any:
    return Annotated[
        kind | None, option(usage, help, panel, autocompletion=None if names is None else complete(names))
    ]


Set = Annotated[
    list[str] | None,
    option(
        "--set FIELD=VALUE", "Any field of the config (see `qra schema`), such as evaluation.steps=20.", HOW
    ),
]
Track = Annotated[
    list[str] | None,
    option(
        "--track TOOL",
        "Follow it in `tensorboard`, `mlflow`, `wandb`, `trackio` or another tracker of accelerate. "
        "May be given several times.",
        WHERE,
        autocompletion=complete(lambda: TRACKERS),
    ),
]
DryRun = Annotated[
    bool,
    option("--dry-run", "Only print the resolved config, the space, the cost and a training example.", WHERE),
]
Json = Annotated[bool, option("--json", "Print the result as JSON, and nothing else.")]
Against = Annotated[
    AgainstName,
    option(
        f"--against {'|'.join(get_args(AgainstName))}",
        "Baselines to tune as well. best: the best uniform plan that fits; shuffled: the plan, shuffled over linears "
        "of the same shape; all: every uniform plan that fits, and the shuffled plan.",
        show_default=True,
    ),
]
RunPath = Annotated[Path, argument("RUN", "Folder of a run.")]
Tuning = Annotated[
    str | None,
    option(
        "--tuning ID",
        "Which tuning: its id (see `qra show`), uniform, shuffled or 16-bit; default: the tuning "
        "of the run's plan.",
    ),
]
OutRun = Annotated[
    Path | None, option("--out -o RUN", "Folder of the run; default: a new one below runs/.", WHERE)
]
SETTINGS: dict[str, Any] = {
    "config": Annotated[Path | None, argument("[CONFIG.yaml]", "A config file; options win over it.")],
    "model": _setting(str, "--model -m M", "`smollm2`, `tiny`, a folder, a GGUF file, or a hub id."),
    "task": _setting(
        str,
        "--task -t T",
        "A task by name (see `qra tasks`), a file of prompts and answers or chats "
        "(.jsonl, .json, .csv, .parquet), or a data set on the hub, owner/name.",
        names=lambda: plugins.list_names("tasks"),
    ),
    "data": _setting(str, "--data PATH", "Folder or file with the task's data."),
    "columns": _setting(
        str, "--columns FIELD=COLUMN,...", "What columns of your data are read as, such as prompt=ask."
    ),
    "metric": _setting(
        list[str],
        "--metric FILE.py:NAME",
        "Function of (answer, example) that scores generated "
        "answers, in a file or as module:NAME. May be given several times.",
    ),
    "memory": _setting(
        list[str],
        "--memory SIZE",
        "Memory budget: 108MiB, 6GiB, 3.5bpw, 75% of uniform 4-bit, or "
        "uniform3r8. May be given several times; a search without it looks for the whole front.",
    ),
    "bits": _setting(
        str,
        "--bits 2,2.5,3",
        "Bit-widths to choose from; by default 2,3,4,8 or, for a budget below 3 bits, 1,1.5,2,2.5,3,4.",
    ),
    "ranks": _setting(str, "--ranks 2,4,8,16,32", "LoRA ranks to choose from; these are the default."),
    "granularity": _setting(
        str,
        "--granularity module|expert|layer|fused",
        "Which weights share one bit-width and rank: a linear, an expert, a layer, or fused shards.",
    ),
    "engine": _setting(
        str,
        f"--engine {'|'.join(ENGINES)}",
        "Where the result will run: decides the backend, and what `qra export` writes.",
        names=lambda: ENGINES,
    ),
    "backend": _setting(
        str,
        "--backend B",
        "Quantization backend (see `qra backends`), or one for each bit-width: "
        "2=hqq,4=bitsandbytes; several (4=hqq+bitsandbytes) are searched.",
        names=lambda: plugins.list_names("backends"),
    ),
    "evaluations": _setting(
        float,
        "--evaluations -n N",
        "Search budget, in full evaluations; the sensitivities come before them.",
        HOW,
    ),
    "strategy": _setting(
        str,
        "--strategy S",
        "Search strategy (see `qra strategies`).",
        HOW,
        names=lambda: plugins.list_names("strategies"),
    ),
    "seed": _setting(int, "--seed N", "Random seed.", HOW),
    "device": _setting(str, "--device D", "auto, cpu, cuda, cuda:1; cuda:0,cuda:1: layers on both.", HOW),
    "evaluator": _setting(
        str,
        "--evaluator E",
        "What measures a plan: quantized-lora (real training) or landscape (a formula, for trying out).",
        HOW,
        names=lambda: plugins.list_names("evaluators"),
    ),
    "sets": Set,
}
"""The options that say what a run is, in the order of the help."""
OF_SEARCH = ("evaluations", "strategy")
"""Settings that only a search has."""


def read_settings(values: Mapping[str, Any], config: Path | None = None) -> RunConfig:
    """The config of a file (default: the one given, or the defaults) with the options of `SETTINGS`, which win; raises
    BadInput for a value that cannot be used."""
    given = {name: _read(name, value) for name, value in values.items() if value is not None}
    file, sets = given.pop("config", None), given.pop("sets", {})
    if twice := next((name for name in given if FIELDS[name] in sets), None):
        raise BadInput(f"give --{twice} or --set {FIELDS[twice]}, not both")
    return make_settings(config or file, {FIELDS[name]: value for name, value in given.items()} | sets)


def with_settings(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `SETTINGS`, but for some, before its own; it gets them as the mapping `given`."""
    shared = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)
        for name, annotation in SETTINGS.items()
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
    """Where progress and remarks go."""
    return Console(stderr=True, highlight=False, emoji=False, width=_get_width(sys.stderr))


def make_view(*, quiet: bool = False) -> Listener:
    """The view of a run on standard error, or a listener that shows nothing."""
    return Listener() if quiet else ConsoleView(stderr())


def _get_width(stream: TextIO) -> int | None:
    """Columns of what is printed; None: those of the terminal, or of the variable COLUMNS."""
    return None if stream.isatty() or "COLUMNS" in os.environ else WIDTH


def print_next_steps(folder: RunFolder, result: SearchResult, found: Finding | None = None) -> None:
    """Print where the report is, and the commands that may follow."""
    console = stdout()
    console.print(f"Report: [bold]{escape(str(folder.report_file))}[/]", soft_wrap=True)
    steps = list_next_steps(folder, result, found)
    width = max(len(what) for what, _ in steps)
    for what, command in steps:
        console.print(f"  {what + ':':{width + 1}}  [bold]{escape(command)}[/]", soft_wrap=True)


def report_default_model(config: RunConfig, view: Listener) -> None:
    """Say which model is taken, if none was named."""
    if config.evaluator == DEFAULT_EVALUATOR and "name" not in config.model.model_fields_set:
        view.say(f"No --model given: using {config.model.name}.")


def print_json(data: Any) -> None:
    """Print a result as JSON, whole or not at all."""
    print(json.dumps(data, indent=1, allow_nan=False))


def read_pairs(
    texts: Sequence[str] | None, option: str = "--set", example: str = "training.learning_rate=0.0005"
) -> dict[str, Any]:
    """Values by name of an option `NAME=VALUE` that may be given several times; raises BadInput for anything else."""
    given: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise BadInput(f"{option} is {text!r}: a name and a value are needed, such as {example}")
        if name in given:
            raise BadInput(f"{option} {name} is given twice: give it once")
        try:
            given[name] = read_yaml(value)
        except ValueError:
            raise BadInput(f"{option} {name}: {value!r} is not a YAML value") from None
    return given


def read_numbers(option: str, text: str, example: str = "2,3,4") -> list[float]:
    """Numbers that are separated by commas, whole ones as integers; raises BadInput for anything else."""
    try:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not parts:
            raise ValueError
        return [int(part) if part.lstrip("-").isdecimal() else float(part) for part in parts]
    except ValueError:
        raise BadInput(
            f"{option} is {text!r}: expected numbers separated by commas, such as {example}"
        ) from None


def _read(name: str, value: Any) -> Any:
    """The value of an option as the config has it."""
    if name == "sets":
        return read_pairs(value)
    if name in ("bits", "ranks"):
        return read_numbers(f"--{name}", value)
    if name == "columns":
        return _read_pairs(
            name, value, "a field and a column are needed, such as prompt=question,answer=reply"
        )
    if name == "backend" and "=" in value:
        wanted = "a name is needed, or one for each bit-width, such as 2=hqq,4=bitsandbytes"
        backends = {bits: names.split("+") for bits, names in _read_pairs(name, value, wanted).items()}
        if not all(bits.replace(".", "", 1).isdecimal() for bits in backends):
            raise BadInput(f"--backend is {value!r}: {wanted}")
        return {bits: names if len(names) > 1 else names[0] for bits, names in backends.items()}
    return value


def _read_pairs(name: str, value: str, wanted: str) -> dict[str, str]:
    """`a=b,c=d` as a mapping."""
    pairs = [tuple(map(str.strip, part.split("="))) for part in value.split(",")]
    if not all(len(p) == 2 and all(p) for p in pairs):
        raise BadInput(f"--{name} is {value!r}: {wanted}")
    if len(dict(pairs)) < len(pairs):  # type: ignore[arg-type]
        raise BadInput(f"--{name} is {value!r}: a name is given twice")
    return dict(pairs)  # type: ignore[arg-type]
