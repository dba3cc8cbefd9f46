"""Puts the commands together, each imported when it is called, and turns exceptions into an exit status and a line."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
import warnings
from importlib import import_module
from importlib.metadata import version as installed_version
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from qra_search.errors import DISTRIBUTION, BadInput, RunFailed, TornLineWarning, format_error

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""
TRACEBACK_VARIABLE = "QRA_TRACEBACK"
SEARCH_PANEL, LOOK_PANEL, TOOLS_PANEL = "Search and tune", "Look at runs", "What there is"


class Command(NamedTuple):
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


COMMANDS = (
    Command(
        "demo", "demo", SEARCH_PANEL, "Plan, tune and compare on SmolLM2-135M and made-up word problems."
    ),
    Command("plan", "search", SEARCH_PANEL, "Choose bits and ranks for a budget, without training."),
    Command(
        "search", "search", SEARCH_PANEL, "Search the bits and rank of every layer under a memory budget."
    ),
    Command("finetune", "finetune", SEARCH_PANEL, "Tune a run's plan and its baselines, and compare them."),
    Command("export", "finetune", SEARCH_PANEL, "Write a tuned run for another tool, and check its logits."),
    Command(
        "generate", "finetune", SEARCH_PANEL, "Answer a prompt by a tuned run, with its speed and memory."
    ),
    Command("report", "look", LOOK_PANEL, "Write the HTML report of a run."),
    Command(
        "show", "look", LOOK_PANEL, "Show a run's plan layer by layer, its tunings, or how two plans differ."
    ),
    Command("strategies", "lists", TOOLS_PANEL, "List the search strategies with their options."),
    Command(
        "backends", "lists", TOOLS_PANEL, "List the quantization backends, and why one cannot be used here."
    ),
    Command("tasks", "lists", TOOLS_PANEL, "List the tasks that come with qra or with installed packages."),
    Command(
        "schema", "lists", TOOLS_PANEL, "Print the JSON schema of a config, or an example to start from."
    ),
    Command("doctor", "lists", TOOLS_PANEL, "List the graphics cards that a model fits."),
    Command("bench", "bench", TOOLS_PANEL, "Compare search strategies on tasks whose best is known."),
)
_COMMAND_BY_NAME = {entry.name: entry for entry in COMMANDS}


def join_paragraph_lines(text: str) -> str:
    """A docstring whose paragraphs flow into the width of a terminal; what is indented stays as it is."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else p.replace("\n", " ") for p in paragraphs)


class LazyGroup(TyperGroup):
    """Imports a command's module when the command is called; help and completion need no more than `COMMANDS`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, None if command is None else _COMMAND_BY_NAME[command.name or ""].load(), rest

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


for _entry in COMMANDS:  # what is called is loaded by `LazyGroup`
    app.command(_entry.name, help=_entry.help, rich_help_panel=_entry.panel)(lambda: None)


def run_safely(arguments: list[str]) -> int:
    """Run the command line; every exception becomes an exit status and, on stderr, one line.

    With the variable QRA_TRACEBACK set, the traceback comes before that line.
    """
    # Typer does not export the base of its own errors, which is click's or a copy of it.
    usage_error: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", TornLineWarning)
            warnings.showwarning = _print_warning
            status = app(arguments, standalone_mode=False, prog_name="qra")
    except usage_error as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context is not None else ""
        return _print_line(error.format_message().rstrip(".") + hint, BAD_INPUT)
    except (typer.Abort, KeyboardInterrupt):
        return _print_line("stopped", INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe went away (`qra show RUN | head`): nothing is wrong, and nothing may be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        explained = isinstance(error, (BadInput, RunFailed)) or os.environ.get(TRACEBACK_VARIABLE)
        hint = "" if explained else f" (set {TRACEBACK_VARIABLE}=1 to see where)"
        return _print_line(format_error(error) + hint, exit_status(error))
    return status if isinstance(status, int) else OK


def exit_status(error: BaseException) -> int:
    """2 if the user can mend it by giving something else, 1 if the run failed."""
    return BAD_INPUT if isinstance(error, BadInput) else FAILED


def _print_warning(message: Warning | str, *place: Any, **more: Any) -> None:
    _print_line(str(message), OK)


def _print_line(message: str, status: int) -> int:
    print(f"qra: {' '.join(message.split())}", file=sys.stderr)
    return status
