"""A plan without a search: quantize, measure the sensitivities, solve the knapsack; a search can go on from it."""

from __future__ import annotations

from typing import Any

from qra_search.config import RunConfig
from qra_search.errors import BadInput, bad_input
from qra_search.evaluation.evaluator import Evaluator
from qra_search.log.trial_log import TrialLog
from qra_search.runs.comparison import read_test
from qra_search.runs.folder import RunFolder, identity_in
from qra_search.study.listener import Listener
from qra_search.study.result import SearchResult
from qra_search.workflow.search import make_study, resumed_text, write_report


def check_plannable(config: RunConfig) -> None:
    """Raises BadInput if a config names no budget: a plan is one for so many bytes."""
    if not config.search.memory:
        raise BadInput("say with --memory how many bytes the plan may take, such as --memory 108MiB or 75%")


def plan_with(evaluator: Evaluator, config: RunConfig, folder: RunFolder, listener: Listener) -> SearchResult:
    """Measure the sensitivities of a run that was begun, write what they choose, and evaluate nothing.

    A run that has them already is not measured again. What it leaves is a run that `qra search` resumes.

    Raises:
        BadInput: the evaluator measures none, or a budget that no plan fits.
    """
    with bad_input():
        log = TrialLog(folder.log_file)
    with log:
        study = make_study(evaluator, config, log=log)
        if (found := resumed_text(study)) is not None:
            listener.say(found)
        result = study.measure()
        identity: dict[str, Any] = identity_in(log)
    if result.sensitivities is None:
        if not result.trials:
            folder.log_file.unlink()  # nothing came of it: no run is left
        raise BadInput(
            f"evaluator {config.evaluator!r} measures no sensitivities, so nothing can be planned: use `qra search`"
        )
    folder.write(result)
    write_report(folder, config, result, identity, read_test(folder.test()))
    return result
