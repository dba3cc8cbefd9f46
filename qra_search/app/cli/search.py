"""`qra search`: from a model, a task and a memory budget to a plan, in a folder that can be resumed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from qra_search.app.cli import common
from qra_search.app.cli.app import INTERRUPTED
from qra_search.app.cli.common import WHERE, option
from qra_search.app.cli.dry_run import print_dry_run
from qra_search.app.evaluator import Workers
from qra_search.app.folder import RunFolder
from qra_search.app.report.terminal import print_result
from qra_search.app.run import Run
from qra_search.app.settings import make_folder_name
from qra_search.errors import BadInput
from qra_search.study.study import Callback, Study


@common.with_settings()
def search(
    given: Mapping[str, Any],
    out: common.OutRun = None,
    dry_run: common.DryRun = False,
    workers: Annotated[
        int | None, option("--workers N", "Number of worker processes; default: none.", WHERE, min=1)
    ] = None,
    executor: Annotated[
        str | None, option("--executor process|ray", "Where workers run; default: process.", WHERE)
    ] = None,
    address: Annotated[str | None, option("--address URL", "Address of a Ray cluster.", WHERE)] = None,
    gpus_per_worker: Annotated[
        float | None,
        option(
            "--gpus-per-worker N",
            "GPUs of each worker, 0.5 for two that share one; default: 1 if GPUs are used, 0 on the CPU.",
            WHERE,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        option(
            "--batch N",
            "Propose so many at a time and await them all: the same trials with any number of workers.",
            WHERE,
            min=1,
        ),
    ] = None,
    track: common.Track = None,
    as_json: common.Json = False,
) -> None:
    """Search the bits and rank of every layer under a memory budget.

    Evaluates the uniform plans that fit first, so the result always says what was gained over them.
    Ctrl-C finishes the running evaluation and saves. The folder of a run in place of a config resumes that run: one
    that was broken off, or one that `qra plan` made.

    [bold]Example[/]

        qra search --model smollm2 --task arithmetic --memory 108MiB --evaluations 24 --out runs/a
    """
    config: Path | None = given["config"]
    if not any(given.values()) and out is None:
        raise BadInput("say what to search: --model and --task, a config, or the folder of a run to resume")
    resumed = RunFolder(config) if config is not None and RunFolder(config).has_run else None
    if resumed is not None and out not in (None, resumed.path):
        raise BadInput(f"{resumed.path} is a run and is resumed in place: remove --out")
    if resumed is not None:
        resumed.config()  # one that was begun from Python has none
    settings = common.read_settings(given, None if resumed is None else resumed.config_file)
    view = common.make_view(quiet=as_json)
    common.report_default_model(settings, view)
    if dry_run:
        left = None if resumed is None else max(0.0, settings.search.evaluations - resumed.result().spent)
        print_dry_run(settings, view, track=track or (), evaluations=left, as_json=as_json)
        return
    folder = resumed or RunFolder(out or make_folder_name(settings))
    for name, value in (
        ("--executor", executor),
        ("--address", address),
        ("--gpus-per-worker", gpus_per_worker),
    ):
        if value is not None and not workers:
            raise BadInput(f"{name}: give the number of workers with --workers")
    pool = Workers(workers, executor or "process", address, gpus_per_worker) if workers else None
    complete = _Completion()
    try:
        with Run(folder.path, settings) as run:
            result = run.search(
                resume=resumed is not None,
                workers=pool,
                batch=batch,
                callbacks=[complete],
                track=track or (),
                progress=view,
            )
    except KeyboardInterrupt:
        if folder.has_run:  # one whose search had not begun was taken away again
            view.say(
                f"Stopped; finished evaluations are saved. Resume: qra search {shlex.quote(str(folder.path))}"
            )
        raise
    if as_json:
        common.print_json({"folder": str(folder.path), "complete": complete.reached, **result.to_dict()})
    else:
        print_result(common.stdout(), result, folder, complete=complete.reached)
    if not complete.reached:
        raise typer.Exit(INTERRUPTED)


class _Completion(Callback):
    """Notes whether a search came to its end, or was interrupted."""

    reached = True

    def on_end(self, study: Study) -> None:
        self.reached = not study.stopping or study.state.spent >= study.evaluations
