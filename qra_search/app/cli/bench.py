"""`qra bench`: compare search strategies on cheap tasks, with statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from qra_search.app.bench.run import run_benchmark
from qra_search.app.bench.tables import write_tables
from qra_search.app.cli import common
from qra_search.app.cli.common import option
from qra_search.errors import RunFailed, convert_to_bad_input

TASKS = ("interaction-16-layer-measured", "misleading-16-layer-measured")
STRATEGIES = ("additive", "qra")
"""What is compared by default: a first look of under two minutes."""


def bench(
    tasks: Annotated[
        list[str] | None,
        option(
            "--task T", "Name of a benchmark task, such as interaction-32-layer-measured; repeat for several."
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        option(
            "--strategy S",
            "A strategy, or FILE.py:NAME, with options after a question mark (`qra?draws=8`); may be given "
            "several times.",
        ),
    ] = None,
    seeds: Annotated[
        int, option("--seeds N", "Number of paired seeds of every cell.", show_default=True, min=1)
    ] = 3,
    evaluations: Annotated[
        float, option("--evaluations -n N", "Search budget, in full evaluations.", show_default=True)
    ] = 25,
    out: Annotated[Path, option("--out -o FOLDER", "Folder for rows and tables.", show_default=True)] = Path(
        "bench"
    ),
    workers: Annotated[int, option("--workers N", "Number of processes.", show_default=True, min=1)] = 2,
    as_json: common.JsonOption = False,
) -> None:
    """Compare search strategies on tasks whose best is known.

    Writes tables with statistics. Finished cells are kept: the same command resumes where it stopped.

    [bold]Example[/]

        qra bench --task interaction-32-layer-measured --strategy qra --strategy random --seeds 3 -n 60
    """
    console = common.stderr()
    say = (lambda line: None) if as_json else (lambda line: console.print(line, markup=False, soft_wrap=True))
    with convert_to_bad_input():
        ran, failed = run_benchmark(
            tasks or TASKS, names or STRATEGIES, range(seeds), evaluations, out, workers, progress=say
        )
        tables = write_tables(out)
    if as_json:
        common.print_json({"folder": str(out), **tables})
    else:
        print((out / "tables.md").read_text())
        print(f"Tables: {out}/tables.md.")
    if failed:
        raise RunFailed(f"{failed} of {ran} cells failed (errors above): run the same command to retry them")
