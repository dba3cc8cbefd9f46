"""Puts the commands together: what `qra --help` lists, and the module of each, imported when the command is called."""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from qra_search.errors import DISTRIBUTION

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""
SEARCH, LOOK, TOOLS = "Search and tune", "Look at runs", "What there is"


class Entry(NamedTuple):
    """A command: its name, the module of this folder that has a function of that name, the panel it is listed in, and
    the first line of its documentation."""

    name: str
    module: str
    panel: str
    help: str

    def load(self) -> Any:
        found = getattr(import_module(f"qra_search.app.cli.{self.module}"), self.name)
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
        alone.command(self.name, help=join_paragraph_lines(found.__doc__))(found)
        return typer.main.get_command(alone)


ENTRIES = (
    Entry("demo", "demo", SEARCH, "Plan, tune and compare on SmolLM2-135M and made-up word problems."),
    Entry("plan", "search", SEARCH, "Choose bits and ranks for a budget, without training."),
    Entry("search", "search", SEARCH, "Search the bits and rank of every layer under a memory budget."),
    Entry("finetune", "finetune", SEARCH, "Tune a run's plan and its baselines, and compare them."),
    Entry("export", "finetune", SEARCH, "Write a tuned run for another tool, and check its logits."),
    Entry("generate", "finetune", SEARCH, "Answer a prompt by a tuned run, with its speed and memory."),
    Entry("report", "look", LOOK, "Write the HTML report of a run."),
    Entry("show", "look", LOOK, "Show a run's plan layer by layer, its tunings, or how two plans differ."),
    Entry("strategies", "lists", TOOLS, "List the search strategies with their options."),
    Entry("backends", "lists", TOOLS, "List the quantization backends, and why one cannot be used here."),
    Entry("tasks", "lists", TOOLS, "List the tasks that come with qra or with installed packages."),
    Entry("schema", "lists", TOOLS, "Print the JSON schema of a config, or an example to start from."),
    Entry("doctor", "lists", TOOLS, "List the graphics cards that a model fits."),
    Entry("bench", "bench", TOOLS, "Compare search strategies on tasks whose best is known."),
)
_BY_NAME = {entry.name: entry for entry in ENTRIES}


def join_paragraph_lines(text: str) -> str:
    """A docstring whose paragraphs flow into the width of a terminal; what is indented stays as it is."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else p.replace("\n", " ") for p in paragraphs)


NAMED = {"--model": "model", "-m": "model", "--task": "task", "-t": "task"}
"""Options whose value is a name."""


def check_names(words: list[str]) -> None:
    """Refuse a misspelt model or task in a command line before the libraries of its command are imported.

    Only where the words alone say what is meant: by the default evaluator, without a config file or a run.
    """
    if words[:1] not in (["plan"], ["search"], ["doctor"]) or {"-h", "--help"} & set(words):
        return
    if any("evaluator" in word or Path(word, "config.yaml").is_file() for word in words):
        return
    if any(word.endswith((".yaml", ".yml")) for word in words):
        return
    given = {}
    for word, after in zip(words, [*words[1:], None], strict=True):
        option, equals, value = word.partition("=")
        if option in NAMED:
            given[NAMED[option]] = value if equals else after
    plugins = import_module("qra_search.plugins")  # with pydantic, which help does without
    plugins.check_names(plugins.DEFAULT_EVALUATOR, **given)


class LazyGroup(TyperGroup):
    """Imports a command's module when the command is called; help and completion need no more than `ENTRIES`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, None if command is None else _BY_NAME[command.name or ""].load(), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # typer would end without a word
            raise typer.Abort from None


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the bit-width and the LoRA rank of every layer, together, under an exact memory budget.",
    epilog="Start with [bold]qra demo[/], or [bold]qra plan --model smollm2 --task arithmetic --memory 95MiB[/].",
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"qra {installed_version(DISTRIBUTION)}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help())


for _entry in ENTRIES:  # what is called is loaded by `LazyGroup`
    app.command(_entry.name, help=_entry.help, rich_help_panel=_entry.panel)(lambda: None)
