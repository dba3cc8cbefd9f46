"""Commands that look at finished runs: their report, the plan in the terminal, runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qra_search.cli import common


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of runs; several are compared.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            show_default=False,
            help="Where to write it; default: report.html in the run's folder, or compare.html for several.",
        ),
    ] = None,  # fmt: skip
    as_json: common.Json = False,
) -> None:
    """Write the HTML report of a run, or one that compares several.

    It is one file that needs no network, and can be made anew at any time, also while a search is running.

    [bold]Example[/]

        qra report runs/a runs/b --out compare.html
    """
    from qra_search.cli.errors import bad_input
    from qra_search.report.page import write_page
    from qra_search.runs import RunFolder

    with bad_input():
        folders = [RunFolder(run).check() for run in runs]
        target = out or (folders[0].report_file if len(folders) == 1 else Path("compare.html"))
    path = write_page(folders, target)
    if as_json:
        common.emit({"report": str(path)})
    else:
        common.stdout().print(f"Report: [bold]{path}[/]", soft_wrap=True)
