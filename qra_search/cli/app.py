"""Puts the commands together."""

from __future__ import annotations

from typing import Annotated

import typer

from qra_search.cli import demo, doctor, finetune, lists, logs, profile, search
from qra_search.cli import look as looking
from qra_search.cli.bench import bench
from qra_search.cli.evaluate import evaluate
from qra_search.cli.export import export
from qra_search.cli.plans import plans

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


log = typer.Typer(help="Check and merge the trials of runs.")
log.command("check")(logs.check_log)
log.command("merge")(logs.merge_logs)
log.command("convert")(logs.convert_log)

app.command("demo", rich_help_panel=SEARCH)(demo.demo)
app.command("search", rich_help_panel=SEARCH)(search.search)
app.command("profile", rich_help_panel=SEARCH)(profile.profile)
app.command("finetune", rich_help_panel=SEARCH)(finetune.finetune)
app.command("evaluate", rich_help_panel=SEARCH)(evaluate)
app.command("export", rich_help_panel=SEARCH)(export)
app.command("report", rich_help_panel=LOOK)(looking.report)
app.command("show", rich_help_panel=LOOK)(looking.show)
app.command("compare", rich_help_panel=LOOK)(looking.compare)
app.command("runs", rich_help_panel=LOOK)(looking.runs)
app.add_typer(plans, name="plan", rich_help_panel=LOOK)
app.add_typer(log, name="log", rich_help_panel=LOOK)
app.command("strategies", rich_help_panel=TOOLS)(lists.strategies)
app.command("backends", rich_help_panel=TOOLS)(lists.backends)
app.command("tasks", rich_help_panel=TOOLS)(lists.tasks)
app.command("schema", rich_help_panel=TOOLS)(lists.schema)
app.command("doctor", rich_help_panel=TOOLS)(doctor.doctor)
app.add_typer(bench, name="bench", rich_help_panel=TOOLS)
