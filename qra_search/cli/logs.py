"""`qra log`: check, salvage, export, import and merge trial logs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qra_search.cli import common
from qra_search.cli.status import FAILED, OK
from qra_search.errors import bad_input

LogPath = Annotated[
    Path, typer.Argument(metavar="LOG", help="A trials.sqlite, or the folder of a run.", show_default=False)
]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="LOG", show_default=False, help="The log to write; must not exist yet.")
]


def check_log(
    path: LogPath,
    save: Annotated[
        Path | None,
        typer.Option("--salvage", metavar="LOG", show_default=False, help="Write what can be saved into this new log."),
    ] = None,
    as_json: common.Json = False,
) -> None:
    """Read every byte of a log and say whether it is what was written.

    A damaged log ends with status 1. What is salvaged has been checked row by row; a lost result is evaluated again
    when the search goes on.

    [bold]Example[/]

        qra log check runs/a --salvage runs/b/trials.sqlite
    """
    from qra_search.log.logtools import check
    from qra_search.log.salvage import salvage

    with bad_input():
        report = check(_file(path))
        if save is not None:
            save.parent.mkdir(parents=True, exist_ok=True)
            found = salvage(_file(path), save)
    if as_json:
        common.emit({"ok": report.ok, "fault": report.fault, "trials": report.statuses, "writer": report.writer})
    else:
        print("\n".join(report.lines()))
        if save is not None:
            print(f"{len(found.rows)} trials saved in {save}")
    raise typer.Exit(OK if report.ok else FAILED)


def export_log(
    path: LogPath,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            show_default=False,
            help="Where to write; a name ending in .parquet gets a table. Default: JSON lines to stdout.",
        ),
    ] = None,  # fmt: skip
) -> None:
    """Write a whole log as JSON lines, which `import` reads: first its header, then one trial a line.

    As parquet it is one row a trial and one column a field.

    [bold]Example[/]

        qra log export runs/a --out a.jsonl
    """
    from qra_search.log.logtools import export_jsonl, export_parquet
    from qra_search.log.trial_log import TrialLog

    with bad_input(), TrialLog(_existing(path)) as log:
        if out is None:
            export_jsonl(log, sys.stdout)
            return
        if out.suffix == ".parquet":
            count = export_parquet(log, out)
        else:
            with out.open("w", encoding="utf-8") as file:
                count = export_jsonl(log, file)
    common.stderr().print(f"{count} trials written to [bold]{out}[/]", soft_wrap=True)


def import_log(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="What `qra log export` wrote.", show_default=False)],
    out: Out,
    as_json: common.Json = False,
) -> None:
    """Make a log from JSON lines; every trial is checked against the search space that comes with them.

    [bold]Example[/]

        qra log import a.jsonl --out runs/b/trials.sqlite
    """
    from qra_search.log.logtools import import_jsonl, lines_of

    with bad_input(), source.open(encoding="utf-8", errors="replace") as file:
        out.parent.mkdir(parents=True, exist_ok=True)
        count = import_jsonl(lines_of(file), out)
    if as_json:
        common.emit({"log": str(out), "trials": count})
    else:
        print(f"{count} trials imported into {out}")


def merge_logs(
    paths: Annotated[list[Path], typer.Argument(metavar="LOG...", help="Logs or run folders.", show_default=False)],
    out: Out,
    as_json: common.Json = False,
) -> None:
    """Put the trials of several runs of one space and evaluator into a new log.

    [bold]Example[/]

        qra log merge runs/a runs/b --out runs/all/trials.sqlite
    """
    from qra_search.log.logtools import merge

    with bad_input():
        files = [_existing(path) for path in paths]
        out.parent.mkdir(parents=True, exist_ok=True)
        count = merge(files, out)
    if as_json:
        common.emit({"log": str(out), "trials": count, "logs": len(files)})
    else:
        print(f"{count} trials of {len(files)} logs merged into {out}")


def _file(path: Path) -> Path:
    from qra_search.runs.folder import RunFolder

    return RunFolder(path).log_file if path.is_dir() else path


def _existing(path: Path) -> Path:
    from qra_search.log.trial_log import LogMismatch

    file = _file(path)
    if not file.is_file():
        raise LogMismatch(f"{file} does not exist: give a trial log or the folder of a run")
    return file


log = typer.Typer(help="Check, save, move and merge the trials of runs.")
log.command("check")(check_log)
log.command("export")(export_log)
log.command("import")(import_log)
log.command("merge")(merge_logs)
