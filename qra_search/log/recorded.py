"""Reads a search back from its trial log alone: the space with its exact bytes, and the state of the study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qra_search.evaluation.prior import Prior
from qra_search.log.state import StudyState
from qra_search.log.trial_log import LogDamaged, LogMismatch, TrialLog
from qra_search.space.serialization import space_from_dict, space_to_dict
from qra_search.space.space import SearchSpace

SPACE = "space_data"
STUDY = "study"


def record(log: TrialLog, space: SearchSpace, study: Mapping[str, Any], **identity: Any) -> None:
    """Begin a log, or resume one, with all that its header says: the space, the identity, what the study is asked for.

    Raises:
        LogMismatch: the log is of another space or identity.
        LogBusy: another process writes it.
    """
    log.bind({SPACE: space_to_dict(space), STUDY: study}, space=space.signature, **identity)


def recorded_space(log: TrialLog) -> SearchSpace:
    """The space of a log.

    Raises:
        LogMismatch: the log holds none.
    """
    data = log.meta(SPACE)
    if data is None:
        raise LogMismatch(f"{log.path} holds no search space: no search has begun in it")
    return space_from_dict(data)


def recorded_state(log: TrialLog) -> StudyState:
    """The state of the study that wrote a log, without its evaluator.

    Raises:
        LogMismatch: no search has begun in the log.
        LogDamaged: a trial cannot be of the log's space.
    """
    space = recorded_space(log)
    _check_trials(log, space)
    prior = log.meta("prior")
    return StudyState(
        space,
        log.trials,
        Prior.from_dict(prior) if prior else None,
        tuple(log.meta("budgets") or ()),
        int(log.meta("seed") or 0),
        float((log.meta(STUDY) or {}).get("evaluations", 100.0)),
    )


def _check_trials(log: TrialLog, space: SearchSpace) -> None:
    """Checksums tell damage; a log from anyone may also hold plans and bytes that its space does not allow."""
    for trial in log:
        try:
            size = space.memory_bytes(trial.plan)
        except ValueError as error:
            raise LogDamaged(f"{log.path}: trial {trial.id} is no plan of the log's space ({error})") from None
        if trial.evaluation is not None and trial.evaluation.memory_bytes != size:
            raise LogDamaged(
                f"{log.path}: trial {trial.id} is said to take {trial.evaluation.memory_bytes} bytes, "
                f"the log's space counts {size}"
            )
