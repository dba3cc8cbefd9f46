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
from qra_search.errors import BadInput, bad_input
from qra_search.files import read_json
from qra_search.runs.final_test import Against as AgainstName
from qra_search.runs.folder import RunFolder
from qra_search.space.serialization import plan_from_dict
from qra_search.space.space import Plan, SearchSpace

PIPE_WIDTH = 120
"""Columns of tables that do not go to a terminal."""
WHAT, HOW, WHERE = "What is searched", "How it is searched", "Where it goes"


def _names(kind: str) -> Any:
    """Completes an option by the names of installed plug-ins."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in plugins.names(kind) if name.startswith(incomplete)]  # type: ignore[arg-type]

    return complete


ConfigFile = Annotated[
    Path | None,
    typer.Argument(metavar="[CONFIG.yaml]", help="A config file; options win over it.", show_default=False),
]  # fmt: skip
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="M", rich_help_panel=WHAT,
                 help="`smollm2`, `tiny`, a folder, a GGUF file, or a hub id.", show_default=False),
]  # fmt: skip
Task = Annotated[
    str | None,
    typer.Option("--task", "-t", metavar="T", rich_help_panel=WHAT, autocompletion=_names("tasks"),
                 help="A task by name (see `qra tasks`), or a .jsonl file of prompts and answers.", show_default=False),
]  # fmt: skip
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="PATH", rich_help_panel=WHAT, help="Folder or file with the task's data.",
                 show_default=False),
]  # fmt: skip
Memory = Annotated[
    list[str] | None,
    typer.Option("--memory", metavar="SIZE", rich_help_panel=WHAT, show_default=False,
                 help="Memory budget: 108MiB, 6GiB, 3.5bpw, 75% of uniform 4-bit, or uniform3r8. "
                      "May be given several times; without it the whole front is searched."),
]  # fmt: skip
Bits = Annotated[
    str | None,
    typer.Option("--bits", metavar="2,3,4,8", rich_help_panel=WHAT, help="Bit-widths to choose from.",
                 show_default=False),
]  # fmt: skip
Ranks = Annotated[
    str | None,
    typer.Option("--ranks", metavar="4,8,16", rich_help_panel=WHAT, help="LoRA ranks to choose from.",
                 show_default=False),
]  # fmt: skip
Granularity = Annotated[
    str | None,
    typer.Option("--granularity", metavar="module|layer|fused", rich_help_panel=WHAT,
                 help="What shares one choice: one linear, a whole layer, or fused shards.", show_default=False),
]  # fmt: skip
Backend = Annotated[
    str | None,
    typer.Option("--backend", metavar="B", rich_help_panel=WHAT, show_default=False,
                 autocompletion=_names("backends"),
                 help="Quantization backend (see `qra backends`), or one for each bit-width: 2=hqq,4=bitsandbytes; "
                      "several (4=hqq+bitsandbytes) are searched."),
]  # fmt: skip
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="D", rich_help_panel=HOW, help="auto, cpu, cuda or cuda:1.", show_default=False),
]  # fmt: skip
Evaluations = Annotated[
    float | None,
    typer.Option("--evaluations", "-n", metavar="N", rich_help_panel=HOW, show_default=False,
                 help="Full evaluations that may be spent, the prior's cost included."),
]  # fmt: skip
Strategy = Annotated[
    str | None,
    typer.Option("--strategy", metavar="S", rich_help_panel=HOW, help="Search strategy (see `qra strategies`).",
                 show_default=False, autocompletion=_names("strategies")),
]  # fmt: skip
EvaluatorName = Annotated[
    str | None,
    typer.Option("--evaluator", metavar="E", rich_help_panel=HOW, show_default=False,
                 autocompletion=_names("evaluators"),
                 help="What measures a plan: quantized-lora (real training) or landscape (a formula, for trying out)."),
]  # fmt: skip
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", rich_help_panel=HOW, help="All randomness follows from it.",
                 show_default=False),
]  # fmt: skip
LearnFrom = Annotated[
    str | None,
    typer.Option("--learn-from", metavar="RUN", rich_help_panel=HOW, show_default=False,
                 help="Take the prior from another run's trials (another budget or seed, or a sibling model) instead "
                      "of measuring one."),
]  # fmt: skip
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", rich_help_panel=HOW, show_default=False,
                 help="Any field of the config (see `qra schema`), such as training.steps=20."),
]  # fmt: skip
Track = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="TOOL[:WHERE]", rich_help_panel=WHERE, show_default=False,
                 autocompletion=_names("trackers"),
                 help="Follow the search in `tensorboard`, `mlflow` or `trackio`, such as mlflow:sqlite:///runs.db. "
                      "May be given several times."),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
AGAINST = get_args(AgainstName)


def _check_against(value: str) -> str:
    if value not in AGAINST:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(AGAINST)}", param_hint="--against")
    return value


Against = Annotated[
    str,
    typer.Option("--against", metavar="|".join(AGAINST), callback=_check_against,
                 help="Uniform plans to tune as well: all that fit, the best of them, or none."),
]  # fmt: skip
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]

_FLAGS = {
    "model": "model.name",
    "device": "model.device",
    "task": "task.name",
    "data": "task.data",
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
}


def settings(config: Path | None, *, sets: list[str] | None = None, **flags: Any) -> RunConfig:
    """The config of a file (or the defaults) with the options given on the command line, which win.

    Raises:
        ConfigError, BadInput: a value that cannot be used.
    """
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
    """Print a result as JSON."""
    json.dump(data, sys.stdout, indent=1, allow_nan=False)
    sys.stdout.write("\n")


def read_plan(space: SearchSpace, path: Path) -> Plan:
    """The plan of a `plan.json`, or of the run in a folder, for a space.

    Raises:
        BadInput: no such file, no plan, or one of another space.
    """
    file = RunFolder(path).plan_file if path.is_dir() else path
    with bad_input():
        data = read_json(file)
        if not isinstance(data, dict):
            raise BadInput(f"{file} {'does not exist' if data is None else 'holds no plan'}: give a plan.json or a run")
        return plan_from_dict(space, data)


def pair(text: str) -> tuple[str, Any]:
    """Field and value of a `--set` option.

    Raises:
        BadInput: it is no such pair.
    """
    field, equals, value = text.partition("=")
    if not equals or not field.strip():
        raise BadInput(f"--set is {text!r}: a field and a value are needed, such as training.steps=20")
    try:
        return field.strip(), read_yaml(value)
    except ValueError:
        raise BadInput(f"--set {field}: {value!r} is not a YAML value") from None


def _value(name: str, value: Any) -> Any:
    if name in ("bits", "ranks"):
        try:
            return [int(part) for part in str(value).split(",") if part.strip()]
        except ValueError:
            raise BadInput(
                f"--{name} is {value!r}: whole numbers with commas between are needed, such as 2,3,4"
            ) from None
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
