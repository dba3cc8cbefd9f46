"""`run()`: a whole search from a config, in a folder that holds all of it and can be resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qra_search.config import RunConfig, load_config, make_config
from qra_search.errors import BadInput, bad_input, needed
from qra_search.evaluation.evaluator import Evaluator
from qra_search.executors import Executor, RemoteEvaluator, make_executor
from qra_search.files import write_text
from qra_search.log.trial_log import TrialLog
from qra_search.report.data import RunData
from qra_search.report.formatting import evaluations_text
from qra_search.report.page import page
from qra_search.report.terminal.live import View, in_notebook, progress_view
from qra_search.runs.comparison import TestResult, read_test
from qra_search.runs.folder import RunFolder, identity_in
from qra_search.space.memory import format_bytes
from qra_search.strategies import make_strategy
from qra_search.study.interrupt import on_interrupt
from qra_search.study.result import SearchResult
from qra_search.study.study import Callback, Study, StudyFailed
from qra_search.study.transfer import learnt_prior
from qra_search.workflow.costs import foretold_costs, worth_text
from qra_search.workflow.dry_run import embeddings_hint
from qra_search.workflow.evaluator import build_evaluator, learnt_log
from qra_search.workflow.rows import say_rows

DEFAULT_FOLDER = Path("runs")


@dataclass(frozen=True)
class Workers:
    """Where evaluations run, if not in this process.

    Attributes:
        count: how many workers.
        kind: `process` or `ray`.
        address: of a Ray cluster.
        gpus: of each worker; None: one each, if there are GPUs and the run's device allows it.
    """

    count: int
    kind: str = "process"
    address: str | None = None
    gpus: float | None = None


def run(
    config: RunConfig | Mapping[str, Any] | str | Path,
    folder: str | Path,
    *,
    resume: bool = False,
    workers: int | Workers | None = None,
    batch: int | None = None,
    progress: bool | View | None = None,
    callbacks: Sequence[Callback] = (),
) -> SearchResult:
    """Search as `qra search` does, and leave the same folder.

    The folder gets `config.yaml`, the trial log, `result.json`, `sensitivities.json`, `plan.json` and
    `report.html`. Ctrl-C ends the search after the running evaluation; `resume=True` continues it.

    Args:
        config: a `RunConfig`, its fields as a mapping, or the path of a YAML file.
        folder: of the run; new, or with `resume` one that was begun.
        resume: continue the run in the folder, whose config must be the same but for what may change.
        workers: evaluate in so many worker processes; default: in this one.
        batch: so many proposals at a time, all awaited: the same trials with any number of workers.
        progress: show how the search stands while it runs: in the cell of a notebook, a terminal, or as lines on
            stderr; None: in a notebook only.
        callbacks: hear of every event of the study.

    Raises:
        RunExists: the folder holds another run, or this one and `resume` is off.
        BadInput: anything else that cannot be used; nothing was spent.
        StudyFailed: the search cannot go on, or nothing came of it.
    """
    settings = as_config(config)
    run_folder = RunFolder(folder)
    pool = Workers(workers) if isinstance(workers, int) else workers
    view = progress if isinstance(progress, View) else _view(progress)
    with opened(settings, run_folder, view, resume=resume, workers=pool) as (evaluator, executor):
        result, _ = search_with(
            evaluator, settings, run_folder, view, executor=executor, batch=batch, callbacks=callbacks
        )  # fmt: skip
    return result


def as_config(config: RunConfig | Mapping[str, Any] | str | Path) -> RunConfig:
    """A config from what `run` takes.

    Raises:
        ConfigError: no such file, or a field that is wrong.
        BadInput: none of these.
    """
    if isinstance(config, RunConfig):
        return config
    if isinstance(config, Mapping):
        return make_config(dict(config))
    if isinstance(config, (str, Path)):
        return load_config(config)
    raise needed("config", config, "a RunConfig, a mapping of its fields, or the path of a YAML file is needed")


@contextmanager
def opened(
    config: RunConfig, folder: RunFolder, view: View, *, resume: bool = False, workers: Workers | None = None
) -> Iterator[tuple[Evaluator, Executor | None]]:
    """The evaluator of a run, and the executor of its workers, with the folder begun and the view shown.

    A folder in which no search has begun when something fails is left as it was.

    Raises:
        RunExists, BadInput: what was given cannot be used; nothing was spent.
    """
    fresh = not folder.exists
    if fresh:
        learnt_log(config)  # before a model is loaded for nothing
    before = folder.config_file.read_text() if folder.config_file.is_file() else None
    folder.begin(config, resume=resume)
    try:
        with view, ExitStack() as stack:
            if workers is None:
                yield stack.enter_context(closing(build_evaluator(config, view.progress))), None
            else:
                with bad_input():
                    pool = make_executor(
                        config, workers.count, kind=workers.kind, address=workers.address,
                        gpus_per_worker=workers.gpus,
                    )  # fmt: skip
                stack.enter_context(pool)
                view.progress(f"start {workers.count} workers", 0, 1)
                with bad_input():
                    evaluator = RemoteEvaluator(pool)
                view.progress(f"start {workers.count} workers", 1, 1)
                yield evaluator, pool
    except BadInput:  # such as a log of another search: these are not the settings of what is here
        if before is None:
            folder.config_file.unlink(missing_ok=True)
        else:
            write_text(folder.config_file, before, durable=True)
        raise
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
    callbacks: Sequence[Callback] = (),
) -> tuple[SearchResult, bool]:
    """Search with an evaluator at hand in a folder that was begun, and write the results.

    Returns:
        The result, and whether the search came to its end (False: it was interrupted).

    Raises:
        BadInput: what was given cannot be used; nothing was spent.
        StudyFailed: the search cannot go on, or nothing came of it.
    """
    with bad_input():
        log = TrialLog(folder.log_file)
    with log:
        study = make_study(evaluator, config, log=log, callbacks=(view, *callbacks), executor=executor, batch=batch)
        if (found := resumed_text(study)) is not None:
            view.say(found)
        budgets = ", ".join(map(format_bytes, study.memory_budgets)) or "the whole front"
        view.say(f"{len(study.space)} groups, budget {budgets}, strategy {study.strategy.name}")
        say_rows(evaluator, view)
        hint = embeddings_hint(config, study.space.fixed_bytes, study.memory_budgets)
        if hint is not None:
            view.say(f"not searched: {hint}")
        costs = foretold_costs(evaluator, study.evaluations, study.sensitivities) if len(log) == 0 else None
        if costs is not None:
            view.say(f"what it costs: {costs.text}")
        if study.sensitivities is not None and len(log) == 0:
            view.say(f"what it may gain: {worth_text(study.result().forecast())}")

        def stop() -> None:
            study.stop()
            view.say("stopping: what is running is finished and saved; press Ctrl-C again to stop at once")

        with on_interrupt(stop):
            result = study.run()
        identity = identity_in(log)
    folder.write(result)
    write_report(folder, config, result, identity, read_test(folder.test()))
    if not result.candidates and not study.stopping:
        raise StudyFailed(_why_nothing(result, study.evaluations))
    return result, not study.stopping


def resumed_text(study: Study) -> str | None:
    """What a study finds in its log, and what is left to do; None if it begins anew."""
    state = study.state
    if not state.trials:
        return (
            None if state.sensitivities is None else "resumed: the sensitivities are measured, no plan is evaluated yet"
        )
    left = max(0.0, study.evaluations - state.spent)
    text = f"resumed: {len(state.trials)} trials are there, {evaluations_text(state.spent)} of "
    text += f"{evaluations_text(study.evaluations)} evaluations spent, {evaluations_text(left)} left"
    cut = len(study.log.running)
    return f"{text}; {cut} evaluation(s) that were cut off are run again" if cut else text


def make_study(
    evaluator: Evaluator,
    config: RunConfig,
    *,
    log: TrialLog,
    callbacks: Sequence[Callback] = (),
    executor: Executor | None = None,
    batch: int | None = None,
) -> Study:
    """The study that a config asks for.

    Raises:
        BadInput: a budget that no plan fits, a log of another search.
    """
    with bad_input():
        # A log keeps the prior that it has: the other run may be gone by now.
        source = learnt_log(config) if len(log) == 0 and log.meta("prior") is None else None
        sensitivities = None if source is None else learnt_prior(source, evaluator.space)
        return Study(
            evaluator,
            sensitivities=sensitivities,
            strategy=make_strategy(config.search.strategy, **config.search.options),
            evaluations=config.search.evaluations,
            memory_budget=list(config.search.memory) or None,
            seed=config.search.seed,
            log=log,
            callbacks=callbacks,
            executor=executor,
            batch=batch,
        )


def write_report(
    folder: RunFolder, config: RunConfig, result: SearchResult, identity: dict[str, Any], tested: Sequence[TestResult]
) -> None:
    """Write `report.html` of a run from what is at hand; nothing is read again."""
    write_text(folder.report_file, page([RunData.of(folder, result, identity, config, tested)]))


def new_folder(config: RunConfig) -> Path:
    """A folder below `runs/` that is named after model and task and does not exist."""
    stem = "-".join(Path(name).stem.lower() for name in (config.model.name, config.task.name))
    if config.evaluator != type(config).model_fields["evaluator"].default:
        stem = config.evaluator
    number = 1
    while (path := DEFAULT_FOLDER / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return path


def _view(progress: bool | None) -> View:
    return progress_view() if (in_notebook() if progress is None else progress) else View()


def _why_nothing(result: SearchResult, evaluations: float) -> str:
    if result.failures():
        return f"all {len(result.failures())} evaluations failed, the last with: {result.failures()[-1].reason}"
    return (
        f"no plan was evaluated: the prior alone was charged {result.spent:.2f} of {evaluations:g} evaluations; "
        f"go on with more --evaluations"
    )


def _forget_if_empty(folder: RunFolder) -> None:
    """A run that was refused before its search began leaves no folder that a second try would trip over."""
    if folder.exists:  # the log is made when the search begins
        return
    for file in (folder.config_file, folder.log_file.with_name(folder.log_file.name + ".lock")):
        file.unlink(missing_ok=True)
    if not any(folder.path.iterdir()):
        folder.path.rmdir()
