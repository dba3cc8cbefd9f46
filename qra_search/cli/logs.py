"""`qra log`: check and merge trial logs, and convert those of older versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qra_search.cli import common
from qra_search.cli.common import argument, option
from qra_search.cli.status import FAILED, OK
from qra_search.errors import bad_input
from qra_search.log.convert import convert
from qra_search.log.logtools import check, merge
from qra_search.runs.folder import OLD_LOG_NAME, RunFolder

LogPath = Annotated[Path, argument("LOG", "A trials.jsonl, or the folder of a run.")]


def check_log(path: LogPath, as_json: common.Json = False) -> None:
    """Read every byte of a log, and list the lines that are not what was written.

    A damaged log ends with status 1. It can be used all the same: its other lines are read, and a lost result is
    evaluated again when the search is resumed.

    [bold]Example[/]

        qra log check runs/a
    """
    with bad_input():
        report = check(_file(path))
    if as_json:
        damage = [{"line": number, "what": what} for number, what in report.damage]
        common.emit({"ok": report.ok, "damage": damage, "trials": report.statuses, "writer": report.writer})
    else:
        print("\n".join(report.lines()))
    raise typer.Exit(OK if report.ok else FAILED)


def convert_log(
    path: Annotated[Path, argument("OLD", "An older log, or the folder of its run.")],
    out: Annotated[Path | None, option("--out -o LOG", "The log to write; default: trials.jsonl beside it.")] = None,
    as_json: common.Json = False,
) -> None:
    """Make a log of a `trials.sqlite` that an older qra wrote; the old file stays.

    [bold]Example[/]

        qra log convert runs/a
    """
    with bad_input():
        old = path / OLD_LOG_NAME if path.is_dir() else path
        new = out or RunFolder(old.parent).log_file
        count = convert(old, new)
    if as_json:
        common.emit({"log": str(new), "trials": count})
    else:
        print(f"{count} trials of {old} converted into {new}")


def merge_logs(
    paths: Annotated[list[Path], argument("LOG...", "Logs or run folders.")],
    out: Annotated[Path, option("--out -o LOG", "The log to write; must not exist.")],
    as_json: common.Json = False,
) -> None:
    """Put the trials of several runs of one space and evaluator into a new log.

    [bold]Example[/]

        qra log merge runs/a runs/b --out runs/all/trials.jsonl
    """
    with bad_input():
        files = [_file(path) for path in paths]
        count = merge(files, out)
    if as_json:
        common.emit({"log": str(out), "trials": count, "logs": len(files)})
    else:
        print(f"{count} trials of {len(files)} logs merged into {out}")


def _file(path: Path) -> Path:
    return RunFolder(path).log_file if path.is_dir() else path


log = typer.Typer(help="Check and merge the trials of runs.")
log.command("check")(check_log)
log.command("convert")(convert_log)
log.command("merge")(merge_logs)
