"""The plan and the search of a run, in a folder that can be resumed; `search` is one without a folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qra_search.allocate.solve import solve
from qra_search.app.config import RunConfig
from qra_search.app.dry_run import describe_search_cost, warn_about_rows
from qra_search.app.folder import RunFolder
from qra_search.app.report.formatting import format_change, format_evaluations
from qra_search.app.report.live import ProgressArgument, make_listener
from qra_search.app.report.page import write_page
from qra_search.errors import BadInput, convert_to_bad_input
from qra_search.evaluator import Evaluator
from qra_search.executors import Executor
from qra_search.files import write_text
from qra_search.log.journal import TrialLog
from qra_search.schemas import TuningRecord
from qra_search.sections import DEFAULT_STRATEGY
from qra_search.space.budgets import resolve_budgets
from qra_search.space.memory import format_bytes
from qra_search.space.serialization import check_sensitivities
from qra_search.strategies import Strategy, make_strategy
from qra_search.study.result import SearchResult, UniformComparison
from qra_search.study.study import Callback, Listener, Study, StudyFailed, check_evaluator


def search(
    evaluator: Evaluator,
    strategy: str | Strategy = DEFAULT_STRATEGY,
    *,
    progress: ProgressArgument = None,
    callbacks: Sequence[Callback] = (),
    **study_options: Any,
) -> SearchResult:
    """Run a `Study` and return its result.

    Args:
        strategy, callbacks, study_options: as `Study` takes them.
        progress: a function of (stage, done, total); None: lines on stderr, with bars in a terminal; False: nothing.

    Raises:
        BadInput: an argument that cannot be used; nothing was spent.
        StudyFailed: the search cannot go on.
    """
    own = check_evaluator(evaluator).progress
    with make_listener(progress) as listener:
        study = Study(evaluator, strategy=strategy, callbacks=[listener, *callbacks], **study_options)
        evaluator.progress = own or listener.progress
        try:
            return study.run()
        finally:
            evaluator.progress = own  # the next search has a listener of its own


def plan_run(evaluator: Evaluator, config: RunConfig, folder: RunFolder, listener: Listener) -> SearchResult:
    """Measure the sensitivities unless the run has them, solve for its budgets, and write the plan.

    A run whose search has begun keeps the plan of that search. Raises BadInput if the evaluator measures none, a budget
    is too small, or the run is of another evaluator.
    """
    space, search = evaluator.space, config.search
    budgets = resolve_budgets(space, search.memory)
    sensitivities = folder.find_sensitivities(evaluator)
    warn_about_rows(evaluator, listener)
    if sensitivities is not None:
        listener.say("resumed: the sensitivities are already measured")
    elif (sensitivities := evaluator.sensitivities()) is None:
        raise BadInput(
            f"evaluator {config.evaluator!r} measures no sensitivities, which `qra plan` needs: use `qra search`"
        )
    check_sensitivities(space, sensitivities)
    folder.check_can_begin(config, resume=True)  # of another process, perhaps, by now
    known = folder.read() if folder.log_file.is_file() else None
    if known is not None and known.result.trials:
        result = known.result
    else:
        solved = {budget: solve(space, sensitivities, budget) for budget in budgets}
        strategy = search.strategy
        result = SearchResult(
            space, (), sensitivities, budgets, search.seed, strategy=strategy, allocations=solved
        )
        if not (folder.has_run and folder.plan_file.is_file()):
            result.write(folder.path, evaluator=evaluator.describe())
    folder.write_config(config)
    write_page(folder.read(result))
    return result


def search_run(
    evaluator: Evaluator,
    config: RunConfig,
    folder: RunFolder,
    listener: Listener,
    *,
    executor: Executor | None = None,
    batch: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> SearchResult:
    """Search with an evaluator in a folder that was begun, and write the results.

    A plan that was tuned stays the run's unless the search found one that is better by more than chance. Raises
    BadInput if nothing could be begun, and StudyFailed if the search cannot go on, or nothing came of it.
    """
    settings = config.search
    strategy = make_strategy(settings.strategy, **settings.options)
    if evaluator.space.extra and not strategy.searches_extra:
        raise BadInput(
            f"strategy {strategy.name!r} does not search {' and '.join(evaluator.space.extra)}: choose random, nsga2 "
            "or bayes, or remove space.learning_rates and space.lengths"
        )
    with convert_to_bad_input():
        budgets = resolve_budgets(evaluator.space, settings.memory)
        known = folder.find_sensitivities(evaluator)
        log = TrialLog(folder.log_file)
    with log:
        with convert_to_bad_input():
            log.bind()  # locks it
            folder.check_can_begin(config, resume=True)  # of another process, perhaps, by now
            study = Study(
                evaluator,
                strategy=strategy,
                evaluations=settings.evaluations,
                memory_budget=budgets or None,
                seed=settings.seed,
                log=log,
                callbacks=(listener, *callbacks),
                executor=executor,
                batch=batch,
                sensitivities=known,
            )
        folder.write_config(config)
        _describe_start(study, listener)

        planned = folder.plan_file.read_text() if folder.plan_file.is_file() else None
        folder.plan_file.unlink(missing_ok=True)  # however the search ends, the plan is that of its log
        try:
            result = study.run()
        finally:
            if planned is not None and not any(trial.done for trial in log.trials):
                write_text(folder.plan_file, planned)  # nothing came of it
    result.write(folder.path, evaluator=evaluator.describe())
    selected = folder.read(result).selected
    if planned is not None and selected is not None and not _beats_tuned(result, selected, folder, listener):
        write_text(folder.plan_file, planned)
    write_page(folder.read(result))
    if (best := result.best()) is not None and best.plan.extra:
        found = ", ".join(f"{name} {value:g}" for name, value in best.plan.extra)
        longer = "A full tuning is longer, and needs a lower learning rate"
        listener.say(f"the best plan was evaluated with {found}. {longer}")
    if not result.candidates and not study.stopping:
        failures = result.failures()
        if failures:
            raise StudyFailed(f"all {len(failures)} evaluations failed, the last with: {failures[-1].reason}")
        count = f"{study.evaluations:g}"
        raise StudyFailed(
            f"{count} evaluations were too few to evaluate any plan in full: raise --evaluations"
        )
    return result


def _describe_start(study: Study, listener: Listener) -> None:
    """Say what a study resumes, what it searches, and, of a new one, what it costs."""
    state, evaluator = study.state, study.evaluator
    if state.trials:
        spent, total = state.spent, study.evaluations
        of_all = f"{format_evaluations(spent)} of {format_evaluations(total)} evaluations spent"
        running = len(study.log.running_trials)
        listener.say(
            f"resumed: {len(state.trials)} trials, {of_all}, {format_evaluations(max(0.0, total - spent))} left"
            + (f"; {running} interrupted evaluation(s) run again" if running else "")
        )
    elif state.sensitivities is not None:
        listener.say("resumed: the sensitivities are already measured, no plan was evaluated yet")
    budgets = ", ".join(map(format_bytes, study.memory_budgets)) or "the whole front"
    listener.say(f"{len(study.space)} groups, budget {budgets}, strategy {study.strategy.name}")
    warn_about_rows(evaluator, listener)
    if state.trials:
        return
    cost = describe_search_cost(evaluator, study.evaluations, is_measured=study.sensitivities is not None)
    if cost is not None:
        listener.say(f"what it costs: {cost}")


def _beats_tuned(result: SearchResult, tuning: TuningRecord, folder: RunFolder, listener: Listener) -> bool:
    """Whether the plan of a search has a lower validation loss than the tuned one, or, if that was not evaluated, than
    the best uniform one, by more than chance; the listener is told."""
    found, tuned = result.comparison(), tuning.plan
    if found is None or found.chosen.plan == tuned:
        return False
    known = {candidate.plan: candidate for candidate in result.candidates}
    other = known.get(tuned, found.baseline)
    name = "the tuned plan" if tuned in known else "the best uniform plan"
    change = UniformComparison(found.budget_bytes, found.chosen, other).change
    # Without an interval nothing tells a gain from chance.
    if change is None or change.interval is None or change.may_be_chance or not change.is_lower:
        amount = f" ({format_change(change)})" if change else ""
        listener.say(f"no plan of the search beats {name} by more than chance{amount}")
        return False
    listener.say(
        f"validation loss of the search's plan against {name}: {format_change(change)}. "
        f"The tuned plan stays selected until `qra finetune {folder.path}` has tuned the search's plan."
    )
    return True
