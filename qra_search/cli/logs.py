"""`qra log check`: reads every byte of a trial log."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from qra_search.cli import common
from qra_search.cli.common import argument
from qra_search.cli.app import FAILED, OK
from qra_search.errors import BadInput, DamagedLines
from qra_search.log.trial_log import TrialLog
from qra_search.runs.folder import RunFolder

STATUSES = ("done", "failed", "running")


def check_log(
    path: Annotated[Path, argument("LOG", "A trials.jsonl, or the folder of a run.")], as_json: common.Json = False
) -> None:
    """Read every byte of a log, and list the lines that are damaged.

    A damaged log ends with status 1. It can be used all the same: its other lines are read, and a lost result is
    evaluated again when the search is resumed.

    [bold]Example[/]

        qra log check runs/a
    """
    file = RunFolder(path).log_file if path.is_dir() else path
    if not file.is_file():
        raise BadInput(f"{file} does not exist: give a trial log or the folder of a run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedLines)  # all of them are listed below
        log = TrialLog(file)
    statuses = Counter(trial.status for trial in log)
    if as_json:
        damage = [{"line": number, "what": what} for number, what in log.damage]
        common.emit({"ok": not log.damage, "damage": damage, "trials": dict(statuses)})
    else:
        counts = ", ".join(f"{statuses[s]} {s}" for s in STATUSES if s in statuses) or "no trials"
        print(f"{file}: {'damaged' if log.damage else 'sound'}, {counts}")
        for number, what in log.damage:
            print(f"line {number}: {what}")
    raise typer.Exit(FAILED if log.damage else OK)


log = typer.Typer(help="Check the trial log of a run.")
log.command("check")(check_log)
