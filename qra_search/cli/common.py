"""What the commands share: their options, the config made of them, and the consoles."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console

from qra_search import plugins
from qra_search.config import RunConfig, load_config, make_config, read_yaml
from qra_search.engines import ENGINES
from qra_search.errors import BadInput, bad_input, shortened
from qra_search.files import read_json
from qra_search.integrations import TRACKERS
from qra_search.runs.comparison import Against as AgainstName
from qra_search.runs.folder import RunFolder
from qra_search.space.serialization import PLAN_FORMAT, plan_from_dict
from qra_search.space.space import Plan, SearchSpace

PIPE_WIDTH = 120
"""Columns of tables that do not go to a terminal."""
WHAT, HOW, WHERE = "What is searched", "How it is searched", "Where it goes"


def _names(kind: str) -> Any:
    """Completes an option by the names of installed plug-ins."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in plugins.names(kind) if name.startswith(incomplete)]  # type: ignore[arg-type]

    return complete


def option(usage: str, help: str, panel: str | None = None, *, show_default: bool = False, **more: Any) -> Any:
    """An option by its names and what it takes, such as `--out -o FILE`."""
    names = [word for word in usage.split() if word.startswith("-")]
    metavar = " ".join(usage.split()[len(names) :]) or None
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, show_default=show_default, **more)


def argument(metavar: str, help: str, *, show_default: bool = False, **more: Any) -> Any:
    """An argument by what it takes."""
    return typer.Argument(metavar=metavar, help=help, show_default=show_default, **more)


ConfigFile = Annotated[Path | None, argument("[CONFIG.yaml]", "A config file; options win over it.")]
Model = Annotated[str | None, option("--model -m M", "`smollm2`, `tiny`, a folder, a GGUF file, or a hub id.", WHAT)]
Task = Annotated[
    str | None,
    option("--task -t T", "A task by name (see `qra tasks`), a file of prompts and answers or chats (.jsonl, .json, "
           ".csv, .parquet), or a data set on the hub, owner/name.", WHAT,
           autocompletion=_names("tasks")),
]  # fmt: skip
Data = Annotated[str | None, option("--data PATH", "Folder or file with the task's data.", WHAT)]
Columns = Annotated[
    str | None,
    option("--columns FIELD=COLUMN,...", "What columns of your data are read as, such as prompt=ask.",
           WHAT),
]  # fmt: skip
Memory = Annotated[
    list[str] | None,
    option("--memory SIZE", "Memory budget: 108MiB, 6GiB, 3.5bpw, 75% of uniform 4-bit, or uniform3r8. "
           "May be given several times; without it the whole front is searched.", WHAT),
]  # fmt: skip
LEAST_BARE = 1 << 20
"""A size without a unit is of bytes: below this one it is taken for a mistake."""


def check_unit(size: str | None) -> None:
    """Raises BadInput if a size given on the command line has no unit and is too small to be meant in bytes."""
    if size is not None and size.strip().isdecimal() and int(size) < LEAST_BARE:
        raise BadInput(f"--memory {size} means {size} bytes: write its unit, such as {size}MiB or {size}GiB")


Bits = Annotated[str | None, option("--bits 2,3,4,8", "Bit-widths to choose from.", WHAT)]
Ranks = Annotated[str | None, option("--ranks 4,8,16", "LoRA ranks to choose from.", WHAT)]
Granularity = Annotated[
    str | None,
    option("--granularity module|expert|layer|fused",
           "What shares one choice: one linear, an expert, a whole layer, or fused shards.", WHAT),
]  # fmt: skip
Backend = Annotated[
    str | None,
    option("--backend B", "Quantization backend (see `qra backends`), or one for each bit-width: "
           "2=hqq,4=bitsandbytes; several (4=hqq+bitsandbytes) are searched.", WHAT,
           autocompletion=_names("backends")),
]  # fmt: skip
Engine = Annotated[
    str | None,
    option(f"--engine {'|'.join(ENGINES)}", "Where the result will run: decides the backend, and what `qra export` "
           "writes.", WHAT,
           autocompletion=lambda incomplete: [name for name in ENGINES if name.startswith(incomplete)]),
]  # fmt: skip
Device = Annotated[str | None, option("--device D", "auto, cpu, cuda or cuda:1.", HOW)]
Evaluations = Annotated[
    float | None, option("--evaluations -n N", "Full evaluations that may be spent, the prior's cost included.", HOW)
]
Strategy = Annotated[
    str | None,
    option("--strategy S", "Search strategy (see `qra strategies`).", HOW, autocompletion=_names("strategies")),
]
EvaluatorName = Annotated[
    str | None,
    option("--evaluator E", "What measures a plan: quantized-lora (real training) or landscape (a formula, for "
           "trying out).", HOW, autocompletion=_names("evaluators")),
]  # fmt: skip
Seed = Annotated[int | None, option("--seed N", "All randomness follows from it.", HOW)]
LearnFrom = Annotated[
    str | None,
    option("--learn-from RUN", "Take the prior from another run's trials (another budget or seed, or a sibling "
           "model) instead of measuring one.", HOW),
]  # fmt: skip
Set = Annotated[
    list[str] | None,
    option("--set FIELD=VALUE", "Any field of the config (see `qra schema`), such as training.steps=20.", HOW),
]
Track = Annotated[
    list[str] | None,
    option("--track TOOL[:WHERE]", "Follow it in `tensorboard`, `mlflow`, `wandb`, `trackio` or `comet_ml`, such as "
           "mlflow:sqlite:///runs.db. May be given several times.", WHERE, 
           autocompletion=lambda incomplete: [name for name in TRACKERS if name.startswith(incomplete)]),
]  # fmt: skip
Push = Annotated[
    str | None,
    option("--push-to-hub OWNER/NAME", "Upload what was written to the Hugging Face hub, with a model card.", WHERE),
]
Json = Annotated[bool, option("--json", "Print the result as JSON, and nothing else.")]
AGAINST = get_args(AgainstName)


def _check_against(value: str) -> str:
    if value not in AGAINST:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(AGAINST)}", param_hint="--against")
    return value


Against = Annotated[
    str,
    option(f"--against {'|'.join(AGAINST)}", "Uniform plans to tune as well: all that fit, the best of them, or none.",
           show_default=True, callback=_check_against),
]  # fmt: skip
Run = Annotated[Path, argument("RUN", "Folder of a run.")]

_FLAGS = {
    "model": "model.name",
    "device": "model.device",
    "task": "task.name",
    "data": "task.data",
    "columns": "task.options.columns",
    "memory": "search.memory",
    "bits": "space.bits",
    "ranks": "space.ranks",
    "granularity": "space.granularity",
    "backend": "quantization.backend",
    "evaluations": "search.evaluations",
    "strategy": "search.strategy",
    "seed": "search.seed",
    "learn_from": "search.learn_from",
    "evaluator": "evaluator",
    "engine": "engine",
}


def settings(config: Path | None, *, sets: list[str] | None = None, **flags: Any) -> RunConfig:
    """The config of a file (or the defaults) with the options given on the command line, which win.

    Raises:
        ConfigError, BadInput: a value that cannot be used.
    """
    for size in flags.get("memory") or ():
        check_unit(size)
    overrides = {_FLAGS[name]: _value(name, value) for name, value in flags.items() if value is not None}
    overrides.update(map(pair, sets or []))
    if config is None:
        return make_config({}, overrides, source="options")
    return load_config(config, overrides)


def stdout() -> Console:
    """Where results go."""
    return Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def stderr() -> Console:
    """Where progress and remarks go."""
    return Console(stderr=True, highlight=False, emoji=False, width=None if sys.stderr.isatty() else PIPE_WIDTH)


def emit(data: Any) -> None:
    """Print a result as JSON, whole or not at all."""
    print(json.dumps(data, indent=1, allow_nan=False))


def read_plan(space: SearchSpace, path: Path) -> Plan:
    """The plan of a `plan.json`, or of the run in a folder, for a space.

    Raises:
        BadInput: no such file, no plan, or one of another space.
    """
    with bad_input():
        return plan_from_dict(space, plan_data(path))


def plan_data(path: Path) -> dict[str, Any]:
    """What a `plan.json`, or that of the run in a folder, holds.

    Raises:
        BadInput: no such file, or no plan in it.
    """
    file = RunFolder(path).plan_file if path.is_dir() else path
    with bad_input():
        data = read_json(file)
    if not isinstance(data, dict):
        raise BadInput(f"{file} {'does not exist' if data is None else 'is no plan'}: give a plan.json or a run")
    if data.get("format") != PLAN_FORMAT:
        raise BadInput(f"{file} is no plan: plan format is {shortened(data.get('format'))}, {PLAN_FORMAT!r} is needed")
    return data


PAIR = "a field and a value are needed, such as training.learning_rate=0.0005"


def pair(text: str, option: str = "--set", wanted: str = PAIR) -> tuple[str, Any]:
    """Name and value of an option that takes both.

    Raises:
        BadInput: it is no such pair; the message says what is `wanted`.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise BadInput(f"{option} is {text!r}: {wanted}")
    try:
        return name.strip(), read_yaml(value)
    except ValueError:
        raise BadInput(f"{option} {name}: {value!r} is not a YAML value") from None


def _value(name: str, value: Any) -> Any:
    if name in ("bits", "ranks"):
        try:
            return [int(part) for part in str(value).split(",") if part.strip()]
        except ValueError:
            raise BadInput(
                f"--{name} is {value!r}: whole numbers with commas between are needed, such as 2,3,4"
            ) from None
    if name == "columns":
        return dict(_column(part) for part in value.split(","))
    if name == "backend" and "=" in value:
        pairs = [part.partition("=") for part in value.split(",")]
        try:
            given = {int(bits): [name.strip() for name in names.split("+")] for bits, _, names in pairs}
            return {bits: names if len(names) > 1 else names[0] for bits, names in given.items()}
        except ValueError:
            raise BadInput(
                f"--backend is {value!r}: a name is needed, or one for each bit-width, such as 2=hqq,4=bitsandbytes"
            ) from None
    return value


def _column(text: str) -> tuple[str, str]:
    field, equals, column = text.partition("=")
    if not equals or not field.strip() or not column.strip():
        raise BadInput(f"--columns is {text!r}: a field and a column are needed, such as prompt=question,answer=reply")
    return field.strip(), column.strip()
