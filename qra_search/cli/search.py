"""`qra search`: from a model, a task and a memory budget to a plan, in a folder that can be resumed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from qra_search.cli import common
from qra_search.cli.common import WHERE, option
from qra_search.cli.dry_run import print_dry_run
from qra_search.cli.status import INTERRUPTED
from qra_search.errors import bad_input
from qra_search.integrations.trackers import Tracker
from qra_search.report.terminal.live import make_view
from qra_search.report.terminal.tables import print_result
from qra_search.runs.folder import RunFolder
from qra_search.workflow.run import Workers, new_folder, opened, search_with


def search(
    context: typer.Context,
    config: common.ConfigFile = None,
    model: common.Model = None,
    task: common.Task = None,
    data: common.Data = None,
    columns: common.Columns = None,
    memory: common.Memory = None,
    bits: common.Bits = None,
    ranks: common.Ranks = None,
    granularity: common.Granularity = None,
    engine: common.Engine = None,
    backend: common.Backend = None,
    evaluations: common.Evaluations = None,
    strategy: common.Strategy = None,
    seed: common.Seed = None,
    device: common.Device = None,
    evaluator: common.EvaluatorName = None,
    learn_from: common.LearnFrom = None,
    sets: common.Set = None,
    out: Annotated[
        Path | None, option("--out -o RUN", "Folder of the run; default: a new one below runs/.", WHERE)
    ] = None,
    resume: Annotated[
        bool, option("--resume", "Go on with the run in --out; so does `qra search RUN`.", WHERE)
    ] = False,
    dry_run: Annotated[
        bool,
        option(
            "--dry-run",
            "Only print the resolved config, the space, its smallest and largest plan, and the cost.",
            WHERE,
        ),
    ] = False,  # fmt: skip
    workers: Annotated[
        int | None, option("--workers N", "Evaluate in so many worker processes; default: in this one.", WHERE, min=1)
    ] = None,
    executor: Annotated[
        str, option("--executor process|ray", "Where workers run.", WHERE, show_default=True)
    ] = "process",
    address: Annotated[str | None, option("--address URL", "Of a Ray cluster.", WHERE)] = None,
    gpus_per_worker: Annotated[
        float | None,
        option(
            "--gpus-per-worker N",
            "GPUs of each worker, 0.5 for two that share one; default: 1 where GPUs are used, 0 on the CPU.",
            WHERE,
        ),
    ] = None,  # fmt: skip
    batch: Annotated[
        int | None,
        option(
            "--batch N",
            "Propose so many at a time and await them all: the same trials with any number of workers.",
            WHERE,
            min=1,
        ),
    ] = None,  # fmt: skip
    track: common.Track = None,
    as_json: common.Json = False,
) -> None:
    """Search the bits and rank of every layer under a memory budget.

    Evaluates the uniform plans that fit first, so the result always says what was gained over them.
    Ctrl-C finishes the running evaluation and saves. The folder of a run in place of a config goes on with that run:
    one that was broken off, or one that `qra plan` made.

    [bold]Example[/]

        qra search --model smollm2 --memory 108MiB --evaluations 24 --out runs/a
    """
    flags: dict[str, Any] = {
        "model": model, "task": task, "data": data, "columns": columns, "memory": memory, "bits": bits,
        "ranks": ranks, "granularity": granularity, "backend": backend, "evaluations": evaluations,
        "strategy": strategy, "seed": seed, "device": device, "evaluator": evaluator, "learn_from": learn_from,
        "engine": engine,
    }  # fmt: skip
    if not any(_given(context, name) for name in context.params):
        print(context.get_help())
        return
    if config is not None and _holds_run(config) and out in (None, config):
        out, config, resume = config, None, True
    if resume and config is None and out is not None and RunFolder(out).config_file.is_file():
        config = RunFolder(out).config_file
    settings = common.settings(config, sets=sets, **flags)
    view = make_view(common.stderr(), quiet=as_json)
    if dry_run:
        begun = resume and out is not None and RunFolder(out).exists
        print_dry_run(settings, view, track=track or (), begun=begun, as_json=as_json)
        return
    if resume and out is None:
        raise typer.BadParameter("say with --out which run to resume", param_hint="--resume")
    if resume and out is not None and not RunFolder(out).exists and not RunFolder(out).holds_old_log:
        raise typer.BadParameter(
            f"there is no run in {out} to resume: leave --resume out to begin one", param_hint="--resume"
        )
    folder = RunFolder(out or new_folder(settings))
    if gpus_per_worker is not None and not workers:
        raise typer.BadParameter("say with --workers how many there are", param_hint="--gpus-per-worker")
    pool = Workers(workers, executor, address, gpus_per_worker) if workers else None
    with bad_input():
        trackers = [Tracker(spec, folder.path, say=view.say) for spec in track or []]
    try:
        with opened(settings, folder, view, resume=resume, workers=pool) as (built, runner):
            result, complete = search_with(
                built, settings, folder, view, executor=runner, batch=batch, callbacks=trackers
            )  # fmt: skip
    except KeyboardInterrupt:
        if folder.exists:  # one whose search had not begun was taken away again
            view.say(f"Stopped at once; what ended is saved. Go on with: qra search {shlex.quote(str(folder.path))}")
        raise
    if as_json:
        common.emit({"folder": str(folder.path), "complete": complete, **result.to_dict()})
    else:
        print_result(common.stdout(), result, folder, complete=complete)
    if not complete:
        raise typer.Exit(INTERRUPTED)


def _holds_run(path: Path) -> bool:
    folder = RunFolder(path)
    return folder.exists or folder.holds_old_log


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
