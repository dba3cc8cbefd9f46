"""`qra bench`: compare search strategies on cheap tasks, with statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qra_search.cli import common
from qra_search.errors import bad_input

bench = typer.Typer(help="Compare search strategies.", no_args_is_help=False)


@bench.callback()
def benchmarks() -> None:
    """Compare search strategies."""


@bench.command("strategies")
def strategies(
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="P", show_default=False, help="A benchmark by name; default: quick."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="T",
            show_default=False,
            help="A landscape (interaction-32-layer-measured) or recorded:LOG; may be given several times.",
        ),
    ] = None,  # fmt: skip
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            metavar="S",
            show_default=False,
            help="A strategy, with options after a question mark (`qra?draws=8`); may be given several times.",
        ),
    ] = None,  # fmt: skip
    seeds: Annotated[
        int | None, typer.Option("--seeds", metavar="N", min=1, show_default=False, help="Paired seeds of every cell.")
    ] = None,
    evaluations: common.Evaluations = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Rows and tables.")] = Path("bench"),
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Processes at a time.")] = 2,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="N", show_default=False, help="Begin no cell after so long."),
    ] = None,
    as_json: common.Json = False,
) -> None:
    """Run strategies on tasks whose best is known, and write tables with statistics.

    Finished cells are kept: the same command goes on where it was.

    [bold]Example[/]

        qra bench strategies --task interaction-32-layer-measured --strategy qra --strategy random --seeds 3 -n 60
    """
    from qra_search.bench import PRESETS, make_tables, run_benchmark
    from qra_search.bench.markdown import to_markdown
    from qra_search.plugins import UnknownName, unknown_message

    if preset is not None and preset not in PRESETS:
        raise UnknownName(unknown_message("preset", preset, PRESETS))
    chosen = PRESETS[preset or DEFAULT_PRESET]
    say = (lambda line: None) if as_json else (lambda line: common.stderr().print(line, markup=False, soft_wrap=True))
    with bad_input():
        progress = run_benchmark(
            tasks or chosen.tasks, names or chosen.strategies, seeds or chosen.seeds,
            evaluations or chosen.evaluations, out, workers, minutes=minutes, tell=say,
        )  # fmt: skip
    tables = make_tables(out)
    if as_json:
        common.emit({"folder": str(out), "remaining": progress.remaining, **tables})
        return
    print(to_markdown(tables))
    left = f" {progress.remaining} cells are left: run the same command again." if progress.remaining else ""
    print(f"Tables and plots: {out}/tables.md, {out}/anytime.svg.{left}")


DEFAULT_PRESET = "quick"
