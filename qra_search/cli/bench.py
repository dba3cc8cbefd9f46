"""`qra bench`: compare search strategies on cheap tasks, with statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from qra_search.bench import PRESETS, make_tables, run_benchmark
from qra_search.cli import common
from qra_search.cli.common import option
from qra_search.errors import BadInput, bad_input
from qra_search.plugins import UnknownName, unknown_message

DEFAULT_PRESET = "quick"


def bench(
    preset: Annotated[
        str, option("--preset P", "A benchmark by name: its tasks, strategies, seeds, evaluations.", show_default=True)
    ] = DEFAULT_PRESET,
    tasks: Annotated[
        list[str] | None,
        option("--task T", "A landscape, such as interaction-32-layer-measured; may be given several times."),
    ] = None,
    names: Annotated[
        list[str] | None,
        option(
            "--strategy S",
            "A strategy or a file with one (./mine.py), with options after a question mark (`qra?draws=8`); may be "
            "given several times.",
        ),
    ] = None,  # fmt: skip
    seeds: Annotated[str | None, option("--seeds N|FIRST-LAST", "Paired seeds of every cell: so many, or 5-9.")] = None,
    evaluations: common.Evaluations = None,
    out: Annotated[Path, option("--out -o FOLDER", "Rows and tables.", show_default=True)] = Path("bench"),
    workers: Annotated[int, option("--workers N", "Processes at a time.", show_default=True, min=1)] = 2,
    tables_only: Annotated[
        bool, option("--tables-only", "Run nothing: make the tables of the rows in the folder.")
    ] = False,
    as_json: common.Json = False,
) -> None:
    """Compare search strategies on tasks whose best is known, and write tables with statistics.

    Finished cells are kept: the same command resumes where it stopped.

    [bold]Example[/]

        qra bench --task interaction-32-layer-measured --strategy qra --strategy random --seeds 3 -n 60
    """
    if preset not in PRESETS:
        raise UnknownName(unknown_message("preset", preset, PRESETS))
    chosen = PRESETS[preset]
    say = (lambda line: None) if as_json else (lambda line: common.stderr().print(line, markup=False, soft_wrap=True))
    with bad_input():
        if not tables_only:
            run_benchmark(
                tasks or chosen.tasks, names or chosen.strategies,
                chosen.seeds if seeds is None else _seeds(seeds), evaluations or chosen.evaluations, out, workers,
                progress=say,
            )  # fmt: skip
        tables = make_tables(out)
    if as_json:
        common.emit({"folder": str(out), **tables})
        return
    print((out / "tables.md").read_text())
    print(f"Tables and plots: {out}/tables.md, {out}/anytime.svg.")


def _seeds(text: str) -> list[int]:
    """`3` as [0, 1, 2] and `5-7` as [5, 6, 7]."""
    first, dash, last = text.partition("-")
    if first.isdecimal() and (last.isdecimal() if dash else int(first) > 0):
        seeds = list(range(int(first), int(last) + 1)) if dash else list(range(int(first)))
        if seeds:
            return seeds
    raise BadInput(f"--seeds is {text!r}: write how many (3: the seeds 0 to 2), or the first and the last (5-9)")
