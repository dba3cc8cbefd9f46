"""The plan of a run without a search: sensitivities are measured once, and one allocation is solved for each budget."""

from __future__ import annotations

from qra_search.allocate.measured import Measured, plain_identity
from qra_search.allocate.sensitivities import Sensitivities
from qra_search.allocate.solve import solve
from qra_search.config import RunConfig
from qra_search.errors import BadInput, bad_input
from qra_search.evaluation.evaluator import Evaluator
from qra_search.runs.folder import RunFolder
from qra_search.space.budgets import resolve_budgets
from qra_search.study.listener import Listener
from qra_search.study.result import SearchResult
from qra_search.workflow.dry_run import say_rows
from qra_search.workflow.search import write_report


def check_plannable(config: RunConfig) -> None:
    """Raises BadInput if a config names no budget: a plan is one for so many bytes."""
    if not config.search.memory:
        raise BadInput("say with --memory how many bytes the plan may take, such as --memory 108MiB or 75%")


def plan_run(evaluator: Evaluator, config: RunConfig, folder: RunFolder, listener: Listener) -> SearchResult:
    """Measure the sensitivities unless the run has them, solve for its budgets, and write the plan.

    A run whose search has begun keeps the plan of that search.

    Raises:
        BadInput: the evaluator measures none, a budget that no plan fits, or a folder with another evaluator's run.
    """
    with bad_input():
        budgets = resolve_budgets(evaluator.space, config.search.memory)
    sensitivities = folder.known_sensitivities(evaluator)
    say_rows(evaluator, listener)
    if sensitivities is not None:
        listener.say("resumed: the sensitivities are measured")
    else:
        sensitivities = _measure(evaluator, config)
    if folder.has_trials:
        result = folder.result()
        folder.keep_config(config)
    else:
        space = evaluator.space
        allocations = {budget: solve(space, sensitivities, budget) for budget in budgets}
        result = SearchResult(
            space, (), (), budgets, sensitivities, config.search.strategy, config.search.seed, allocations=allocations
        )
        folder.write_plan(config, Measured(space, sensitivities, plain_identity(evaluator.describe())), result.chosen())
    write_report(folder, config, result, folder.identity())
    return result


def _measure(evaluator: Evaluator, config: RunConfig) -> Sensitivities:
    sensitivities = evaluator.sensitivities()
    if sensitivities is None:
        raise BadInput(
            f"evaluator {config.evaluator!r} measures no sensitivities, so nothing can be planned: use `qra search`"
        )
    sensitivities.check(evaluator.space)
    return sensitivities
