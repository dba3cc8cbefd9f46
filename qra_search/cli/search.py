"""`qra search`: from a model, a task and a memory budget to a plan, in a folder that can be gone on with."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qra_search.cli import common
from qra_search.cli.errors import INTERRUPTED
from qra_search.errors import bad_input

if TYPE_CHECKING:
    from qra_search.config import RunConfig
    from qra_search.evaluation.evaluator import Evaluator
    from qra_search.executors import Executor
    from qra_search.report.terminal.live import View
    from qra_search.runs.folder import RunFolder
    from qra_search.study.callbacks import Callback
    from qra_search.study.result import SearchResult
    from qra_search.study.study import Study

DEFAULT_FOLDER = Path("runs")


def search(
    config: common.ConfigFile = None,
    model: common.Model = None,
    task: common.Task = None,
    data: common.Data = None,
    memory: common.Memory = None,
    bits: common.Bits = None,
    ranks: common.Ranks = None,
    granularity: common.Granularity = None,
    backend: common.Backend = None,
    evaluations: common.Evaluations = None,
    strategy: common.Strategy = None,
    seed: common.Seed = None,
    device: common.Device = None,
    evaluator: common.EvaluatorName = None,
    learn_from: common.LearnFrom = None,
    sets: common.Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="RUN",
            rich_help_panel=common.WHERE,
            show_default=False,
            help="Folder of the run; default: a new one below runs/.",
        ),
    ] = None,  # fmt: skip
    resume: Annotated[
        bool, typer.Option("--resume", rich_help_panel=common.WHERE, help="Go on with the run in --out.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            rich_help_panel=common.WHERE,
            help="Only print the resolved config, the space, its smallest and largest plan, and the cost.",
        ),
    ] = False,  # fmt: skip
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            min=1,
            rich_help_panel=common.WHERE,
            show_default=False,
            help="Evaluate in so many worker processes; default: in this one.",
        ),
    ] = None,  # fmt: skip
    executor: Annotated[
        str,
        typer.Option("--executor", metavar="process|ray|dask", rich_help_panel=common.WHERE, help="Where workers run."),
    ] = "process",
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="URL",
            rich_help_panel=common.WHERE,
            show_default=False,
            help="Of a Ray or Dask cluster.",
        ),
    ] = None,  # fmt: skip
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            metavar="N",
            min=1,
            rich_help_panel=common.WHERE,
            show_default=False,
            help="Propose so many at a time and await them all: the same trials with any number of workers.",
        ),
    ] = None,  # fmt: skip
    track: common.Track = None,
    as_json: common.Json = False,
) -> None:
    """Search the bits and rank of every layer under a memory budget.

    Evaluates the uniform plans that fit first, so the result always says what was gained over them.
    Ctrl-C finishes the running evaluation and saves; --resume goes on.

    [bold]Example[/]

        qra search --model smollm2 --task arithmetic --memory 108MiB --evaluations 24 --out runs/a
    """
    from qra_search.report.terminal.live import make_view
    from qra_search.runs.folder import RunFolder

    flags: dict[str, Any] = {
        "model": model, "task": task, "data": data, "memory": memory, "bits": bits, "ranks": ranks,
        "granularity": granularity, "backend": backend, "evaluations": evaluations, "strategy": strategy,
        "seed": seed, "device": device, "evaluator": evaluator, "learn_from": learn_from,
    }  # fmt: skip
    if resume and config is None and out is not None and RunFolder(out).config_file.is_file():
        config = RunFolder(out).config_file
    settings = common.settings(config, sets=sets, **flags)
    view = make_view(common.stderr(), quiet=as_json)
    if dry_run:
        from qra_search.cli.dry_run import print_dry_run

        print_dry_run(settings, view, as_json=as_json)
        return
    if resume and out is None:
        raise typer.BadParameter("say with --out which run to go on with", param_hint="--resume")
    if resume and out is not None and not RunFolder(out).exists and not RunFolder(out).holds_old_log:
        raise typer.BadParameter(
            f"there is no run in {out} to go on with: leave --resume out to begin one", param_hint="--resume"
        )
    folder = RunFolder(out or new_folder(settings))
    pool = Workers(workers, executor, address) if workers else None
    trackers = make_trackers(track or [], folder, view)
    try:
        with opened(settings, folder, view, resume=resume, workers=pool) as (built, runner):
            result, complete = search_with(
                built, settings, folder, view, executor=runner, batch=batch, trackers=trackers
            )  # fmt: skip
    except KeyboardInterrupt:
        if folder.exists:  # one whose search had not begun was taken away again
            view.say(f"Stopped at once; what ended is saved. Go on with: qra search --resume --out {folder.path}")
        raise
    if as_json:
        common.emit({"folder": str(folder.path), "complete": complete, **result.to_dict()})
    else:
        from qra_search.report.terminal.tables import print_result

        print_result(common.stdout(), result, folder, complete=complete)
    if not complete:
        raise typer.Exit(INTERRUPTED)


@dataclass(frozen=True)
class Workers:
    """Where evaluations run, if not in this process: how many workers, of what kind, of which cluster."""

    count: int
    kind: str = "process"
    address: str | None = None


@contextmanager
def opened(
    config: RunConfig, folder: RunFolder, view: View, *, resume: bool = False, workers: Workers | None = None
) -> Iterator[tuple[Evaluator, Executor | None]]:
    """The evaluator of a run, and the executor of its workers, with the folder begun and the view shown.

    A folder in which no search has begun when something fails is left as it was.

    Raises:
        RunExists, BadInput: what was given cannot be used; nothing was spent.
    """
    from qra_search.executors import RemoteEvaluator

    fresh = not folder.exists
    folder.begin(config, resume=resume)
    try:
        with view, ExitStack() as stack:
            if workers is None:
                yield stack.enter_context(closing(common.build_evaluator(config, view))), None
            else:
                executor = stack.enter_context(_pool(config, workers))
                view.progress(f"start {workers.count} workers", 0, 1)
                with bad_input():
                    evaluator = RemoteEvaluator(executor)
                view.progress(f"start {workers.count} workers", 1, 1)
                yield evaluator, executor
    finally:
        if fresh:
            _forget_if_empty(folder)


def search_with(
    evaluator: Evaluator,
    config: RunConfig,
    folder: RunFolder,
    view: View,
    *,
    executor: Executor | None = None,
    batch: int | None = None,
    trackers: Sequence[Callback] = (),
) -> tuple[SearchResult, bool]:
    """Search with an evaluator at hand in a folder that was begun, and write the results.

    Returns:
        The result, and whether the search came to its end (False: it was interrupted).

    Raises:
        BadInput, BudgetTooSmall, LogMismatch: what was given cannot be used; nothing was spent.
        StudyFailed: the search cannot go on, or nothing came of it.
    """
    from qra_search.cli.dry_run import embeddings_hint
    from qra_search.log.trial_log import TrialLog
    from qra_search.study.study import StudyFailed

    with bad_input():
        log = TrialLog(folder.log_file)
    with log:
        study = make_study(evaluator, config, log=log, callbacks=(view, *trackers), executor=executor, batch=batch)
        if study.log.running:
            view.say(f"going on with {len(study.log.running)} evaluation(s) that were cut off")
        view.say(f"{len(study.space)} groups, budget {_budgets_text(study)}, strategy {study.strategy.name}")
        hint = embeddings_hint(config, study.space.fixed_bytes, study.memory_budgets)
        if hint is not None:
            view.say(f"not searched: {hint}")
        with stop_on_interrupt(study, view):
            result = study.run()
    folder.write(result)
    write_report(folder)
    if not result.candidates and not study.stopping:
        raise StudyFailed(_why_nothing(result, study.evaluations))
    return result, not study.stopping


def make_study(evaluator: Evaluator, config: RunConfig, **options: Any) -> Study:
    """The study that a config asks for.

    Raises:
        BadInput: a budget that no plan fits, a log of another search.
    """
    from qra_search.runs.folder import RunFolder
    from qra_search.strategies import make_strategy
    from qra_search.study.learnt import learnt_prior
    from qra_search.study.study import Study

    source, log = config.search.learn_from, options.get("log")
    with bad_input():
        prior = None
        # A log with trials keeps the prior that it has: the other run may be gone by now.
        if source is not None and (log is None or len(log) == 0):
            path = RunFolder(source).check().log_file if Path(source).is_dir() else Path(source)
            prior = learnt_prior(path, evaluator.space)
        return Study(
            evaluator,
            prior=prior,
            strategy=make_strategy(config.search.strategy, **config.search.options),
            evaluations=config.search.evaluations,
            memory_budget=list(config.search.memory) or None,
            seed=config.search.seed,
            **options,
        )


def make_trackers(specs: Sequence[str], folder: RunFolder, view: View) -> list[Callback]:
    """The trackers that were asked for, which tell the view when their tool fails.

    Raises:
        BadInput: no such tracker, its package is missing, or it cannot write where it is told to.
    """
    if not specs:
        return []
    from qra_search.exchange.trackers import make_tracker

    with bad_input():
        return [make_tracker(spec, folder.path, say=view.say) for spec in specs]


def write_report(folder: RunFolder) -> Path:
    """Make `report.html` of a run anew."""
    from qra_search.report.html.page import write_page

    return write_page([folder], folder.report_file)


def new_folder(config: RunConfig) -> Path:
    """A folder below `runs/` that is named after model and task and does not exist."""
    stem = "-".join(Path(name).stem.lower() for name in (config.model.name, config.task.name))
    if config.evaluator != type(config).model_fields["evaluator"].default:
        stem = config.evaluator
    number = 1
    while (path := DEFAULT_FOLDER / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return path


@contextmanager
def stop_on_interrupt(study: Study, view: View) -> Iterator[None]:
    """The first Ctrl-C ends the study after the running evaluation, the second at once."""

    def handle(signum: int, frame: Any) -> None:
        if study.stopping:
            raise KeyboardInterrupt
        study.stop()
        view.say("stopping: what is running is finished and saved; press Ctrl-C again to stop at once")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _pool(config: RunConfig, workers: Workers) -> Any:
    from qra_search.executors import make_executor

    with bad_input():
        return make_executor(config, workers.count, kind=workers.kind, address=workers.address)


def _why_nothing(result: SearchResult, evaluations: float) -> str:
    if result.failures():
        return f"all {len(result.failures())} evaluations failed, the last with: {result.failures()[-1].reason}"
    return (
        f"no plan was evaluated: the prior alone was charged {result.spent:.2f} of {evaluations:g} evaluations; "
        f"go on with --resume and more --evaluations"
    )


def _budgets_text(study: Study) -> str:
    from qra_search.space.memory import format_bytes

    return ", ".join(map(format_bytes, study.memory_budgets)) or "the whole front"


def _forget_if_empty(folder: RunFolder) -> None:
    """A run that was refused before its search began leaves no folder that a second try would trip over."""
    if folder.exists:  # the log is made when the search begins
        return
    for file in (folder.log_file.with_name(folder.log_file.name + ".lock"), folder.config_file):
        file.unlink(missing_ok=True)
    if not any(folder.path.iterdir()):
        folder.path.rmdir()
