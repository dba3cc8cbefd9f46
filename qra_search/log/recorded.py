"""Reads a search back from its trial log alone: the space with its exact bytes, and the state of the study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from qra_search.allocate.sensitivities import Sensitivities
from qra_search.log.errors import LogDamaged, LogMismatch
from qra_search.log.lines import NOT_A_LOG, short
from qra_search.log.state import StudyState
from qra_search.log.trial_log import TrialLog
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
        LogDamaged: it holds what is none.
    """
    data = log.meta(SPACE)
    if data is None:
        raise LogMismatch(f"{log.path} holds no search space: no search has begun in it")
    with _readable(log):
        space = space_from_dict(data)
        space.memory  # noqa: B018 - its tables are part of what must be right
    return space


def recorded_state(log: TrialLog) -> StudyState:
    """The state of the study that wrote a log, without its evaluator.

    Raises:
        LogMismatch: no search has begun in the log.
        LogDamaged: a trial cannot be of the log's space.
    """
    space = recorded_space(log)
    _check_trials(log, space)
    with _readable(log):
        sensitivities = Sensitivities.from_dict(log.meta("prior")) if log.meta("prior") else None
        if sensitivities is not None:
            sensitivities.check(space)
        return StudyState(
            space,
            log.trials,
            sensitivities,
            tuple(map(int, log.meta("budgets") or ())),
            int(log.meta("seed") or 0),
            float((log.meta(STUDY) or {}).get("evaluations", 100.0)),
        )


@contextmanager
def _readable(log: TrialLog) -> Iterator[None]:
    try:
        yield
    except NOT_A_LOG as error:
        raise LogDamaged(f"{log.path} has a header that is no log's ({short(error)})") from None


def _check_trials(log: TrialLog, space: SearchSpace) -> None:
    """Checksums tell damage; a log from anyone may also hold plans and bytes that its space does not allow."""
    for trial in log:
        try:
            size = space.memory_bytes(trial.plan)
        except ValueError as error:
            raise LogDamaged(f"{log.path}: trial {trial.id} is no plan of the log's space ({short(error)})") from None
        if trial.evaluation is not None and trial.evaluation.memory_bytes != size:
            raise LogDamaged(
                f"{log.path}: trial {trial.id} is recorded with {trial.evaluation.memory_bytes} bytes, "
                f"the log's space counts {size}"
            )
