"""Puts the commands together."""

from __future__ import annotations

from typing import Annotated

import typer

from qra_search.cli import demo, finetune, lists, looking, profile, search

SEARCH, LOOK, TOOLS = "Search and tune", "Look at runs", "What there is"

app = typer.Typer(
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the bit-width and the LoRA rank of every layer, together, under an exact memory budget.",
    epilog="Start with [bold]qra demo[/], or [bold]qra search --model smollm2 --memory 108MiB --dry-run[/].",
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"qra {installed('qra')}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command("search", rich_help_panel=SEARCH)(search.search)
app.command("demo", rich_help_panel=SEARCH)(demo.demo)
app.command("profile", rich_help_panel=SEARCH)(profile.profile)
app.command("finetune", rich_help_panel=SEARCH)(finetune.finetune)
app.command("report", rich_help_panel=LOOK)(looking.report)
app.command("strategies", rich_help_panel=TOOLS)(lists.strategies)
app.command("backends", rich_help_panel=TOOLS)(lists.backends)
app.command("tasks", rich_help_panel=TOOLS)(lists.tasks)
app.command("schema", rich_help_panel=TOOLS)(lists.schema)
