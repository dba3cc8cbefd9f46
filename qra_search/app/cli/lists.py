"""What there is: strategies, backends, tasks, the schema of a config, and the graphics cards that a model fits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Annotated, Any

from qra_search import plugins
from qra_search.app.cli import common
from qra_search.app.cli.common import option
from qra_search.app.config import RunConfig, dump_config
from qra_search.app.evaluator import TunableEvaluator, build_evaluator
from qra_search.app.report.live import make_listener
from qra_search.app.report.tables import TextTable
from qra_search.errors import BadInput, format_error
from qra_search.space.memory import format_bytes

EXAMPLE_SHAPE = (1024, 1024)
"""Weight whose bytes stand for a backend's bits a weight."""


def strategies(as_json: common.JsonOption = False) -> None:
    """List the search strategies with their options.

    [bold]Example[/]

        qra strategies
    """
    rows = _describe_all("strategies", _describe_strategy)
    options = [", ".join(f"{k}={v}" for k, v in row.get("options", {}).items()) for row in rows]
    cells = [(row["name"], row["summary"], texts) for row, texts in zip(rows, options, strict=True)]
    note = "Choose one with --strategy; options with --set search.options.NAME=VALUE."
    _print(rows, ("strategy", "what it does", "options"), cells, note, as_json=as_json)


def tasks(as_json: common.JsonOption = False) -> None:
    """List the tasks that come with qra or with installed packages.

    [bold]Example[/]

        qra tasks
    """
    rows = _describe_all("tasks", lambda task: {})
    note = "Your own data: --task rows.jsonl, one object with `prompt` and `answer` a line."
    _print(rows, ("task", "what it is"), [(r["name"], r["summary"]) for r in rows], note, as_json=as_json)


def backends(as_json: common.JsonOption = False) -> None:
    """List the quantization backends, and why one cannot be used here.

    With the bit-widths of each, the exact bits that it stores a weight in, and its devices.

    [bold]Example[/]

        qra backends
    """
    rows = _describe_all("backends", _describe_backend)
    cells = []
    for row in rows:
        reason = row.get("unavailable")
        widths = ", ".join(f"{b} ({stored:.2f})" for b, stored in row.get("bits", {}).items())
        what = f"not available: {reason}" if reason else row["summary"]
        also = f" Also {', '.join(row['variants'])}." if row.get("variants") else ""
        cells.append((row["name"], widths, ", ".join(row.get("devices", [])), what + also))
    heads = (
        "backend",
        f"bits (stored bits a weight of {EXAMPLE_SHAPE[0]} x {EXAMPLE_SHAPE[1]})",
        "devices",
        "what it is",
    )
    default = RunConfig().quantization.backend
    _print(rows, heads, cells, f"Choose one with --backend; the default is {default}.", as_json=as_json)


def schema(
    example: Annotated[bool, option("--example", "Print a config with every default, as YAML.")] = False,
) -> None:
    """Print the JSON schema of a config, or an example to start from.

    [bold]Example[/]

        qra schema --example > my-run.yaml
    """
    if example:
        print(dump_config(RunConfig()), end="")
    else:
        common.print_json(RunConfig.model_json_schema())


@common.with_settings(
    "config", "bits", "ranks", "granularity", "engine", "backend", "seed", "device", "evaluator"
)
def doctor(given: Mapping[str, Any], as_json: common.JsonOption = False) -> None:
    """List the graphics cards that a model fits.

    Shows on which cards a search and its final tuning fit, and with which settings. Reads only the model's
    config.json.

    [bold]Example[/]

        qra doctor --model path/to/model --task train.jsonl
    """
    if given["model"] is None:
        raise BadInput("--model is missing: name the model to list the GPUs that it fits")
    config = common.read_settings(given)
    with make_listener(not as_json) as view:
        evaluator = build_evaluator(config, view.progress, weights=False)
    with closing(evaluator):
        cards = list(evaluator.list_fitting_cards()) if isinstance(evaluator, TunableEvaluator) else []
    if not cards:
        raise BadInput(
            f"evaluator {config.evaluator!r} cannot tell which GPUs a run fits: use --evaluator quantized-lora"
        )
    heads = ("card", "settings that fit", "highest peak", "host memory")
    _print(cards, heads, [_format_card(card) for card in cards], as_json=as_json)


def _format_card(card: Mapping[str, Any]) -> tuple[str, ...]:
    if card["settings"] is None:
        return card["name"], "none: choose a smaller model, or --bits 2,3 and --ranks 4", "", ""
    peak = f"{format_bytes(card['peak_bytes'])} ({card['phase']})"
    return card["name"], card["settings"], peak, format_bytes(card["host_bytes"])


def _describe_all(kind: plugins.Kind, describe_one: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    """Name, summary and more of every plug-in of a kind; one that cannot be loaded says so in its summary."""
    rows = []
    for name in plugins.list_names(kind):
        try:
            plugin = plugins.load(kind, name)
            summary = " ".join((inspect.getdoc(plugin) or "").split("\n\n")[0].split())
            rows.append({"name": name, "summary": summary, **describe_one(plugin)})
        except (
            Exception
        ) as error:  # another's code may raise anything, and the others are listed all the same
            reason = str(error) if isinstance(error, ImportError) else format_error(error)
            rows.append({"name": name, "summary": f"not available: {reason}"})
    return rows


def _describe_backend(factory: Any) -> dict[str, Any]:
    backend = factory()
    return {
        "bits": {
            b: backend.storage(b).bytes(*EXAMPLE_SHAPE) * 8 / (EXAMPLE_SHAPE[0] * EXAMPLE_SHAPE[1])
            for b in backend.bits
        },
        "devices": list(backend.devices),
        "unavailable": backend.unavailable_reason(),
        "variants": [f"{factory.name}-{variant}" for variant in factory.variants],
    }


def _describe_strategy(factory: Any) -> dict[str, Any]:
    parameters = inspect.signature(factory).parameters.values()
    given = {p.name: p.default for p in parameters if p.default is not p.empty}
    plain = {k: v if isinstance(v, int | float | str | None) else str(v) for k, v in given.items()}
    return {"options": plain}


def _print(
    rows: Sequence[Mapping[str, Any]],
    heads: Sequence[str],
    cells: Sequence[Sequence[str]],
    note: str = "",
    *,
    as_json: bool,
) -> None:
    if as_json:
        common.print_json(rows)
        return
    common.stdout().print(TextTable("", heads, cells, left=heads))
    if note:
        print(f"\n{note}")
