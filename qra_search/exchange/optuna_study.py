"""Export format `optuna-study`: a run's trials as an Optuna study in a journal file, for optuna-dashboard."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from qra_search.errors import install_hint
from qra_search.exchange.trackers.base import flat
from qra_search.log.trial import Trial
from qra_search.runs.folder import RunFolder
from qra_search.space.memory import format_bytes

FILE = "study.log"
OBJECTIVES = ("loss", "memory MiB")
"""What the study minimises, in this order: optuna-dashboard then shows the front."""


@dataclass(frozen=True)
class Written:
    """What was written, in the words of the other export formats: there are no logits to compare."""

    path: Path
    notes: tuple[str, ...]
    largest_logit_difference: float | None = None


class OptunaStudyExporter:
    """Writes the trials of a run, tuned or not; parameters are the bits and the rank of every group.

    A trial at low fidelity is `PRUNED`, since its loss does not compare with the others'; a failed one is `FAIL` with
    its reason. Both have what is known of them as user attributes.

    Args:
        study: name of the study; default: that of the run's folder.
    """

    name = "optuna-study"
    summary = "every trial as an Optuna study (journal file), which optuna-dashboard shows"
    file = False

    def __init__(self, study: str | None = None):
        self.study = study

    @classmethod
    def with_options(cls, options: Mapping[str, Any]) -> OptunaStudyExporter:
        """The exporter with these options.

        Raises:
            ValueError: it has no such option.
        """
        known = list(inspect.signature(cls).parameters)
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(f"format {cls.name} has no option {unknown[0]!r}: it has {', '.join(known)}")
        return cls(**options)

    def reasons(self, run: str | Path) -> list[str]:
        """Reasons why the run cannot be written; empty where it can.

        Raises:
            NoRun: no search has begun there.
        """
        RunFolder(run).check()
        try:
            import optuna  # noqa: F401
        except ImportError:
            return [f"the package optuna is not installed: {install_hint('optuna')}"]
        return []

    def export(self, run: str | Path, out: str | Path) -> Written:
        """Write the study into a new file (where `out` has an ending), or as study.log into a new folder.

        Raises:
            NoRun: no search has begun there.
            ValueError: something is in the way, or optuna is missing.
        """
        reasons = self.reasons(run)
        if reasons:
            raise ValueError(f"{run} cannot be exported as {self.name}: " + "; ".join(reasons))
        path = Path(out) if Path(out).suffix else Path(out) / FILE
        if path.exists():
            raise ValueError(f"{path} exists already: give another place, or remove it first")
        path.parent.mkdir(parents=True, exist_ok=True)
        count = write_study(RunFolder(run), path, self.study)
        return Written(path, (f"{count} trials; look at them with: optuna-dashboard {path}",))


def write_study(run: RunFolder, path: Path, name: str | None = None) -> int:
    """Write the trials of a run that have ended as an Optuna study, and return how many there are."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    result = run.result()
    bits = optuna.distributions.CategoricalDistribution(result.space.bits)
    ranks = optuna.distributions.CategoricalDistribution(result.space.ranks)
    distributions = {f"{g} {what}": d for g in result.space.names for what, d in (("bits", bits), ("rank", ranks))}
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        # A journal: SQLite takes half a second for a trial of 200 groups, with a row for each of its parameters.
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))), study_name=name or run.name,
            directions=["minimize"] * len(OBJECTIVES),
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(OBJECTIVES))
        for key, value in flat({**run.identity(), "memory_budgets": list(map(format_bytes, result.memory_budgets))}):
            study.set_user_attr(key, value)
        ended = [t for t in result.trials if t.status != "running"]
        study.add_trials([_frozen(optuna, t, distributions) for t in ended])
    finally:
        optuna.logging.set_verbosity(level)
    return len(ended)


def _frozen(optuna: Any, trial: Trial, distributions: dict[str, Any]) -> Any:
    """A trial as Optuna has it."""
    values = [v for pair in zip(trial.plan.bits, trial.plan.ranks, strict=True) for v in pair]
    known: dict[str, Any] = {"fidelity": trial.fidelity, "seed": trial.seed, "origin": trial.proposal.origin}
    state = optuna.trial.TrialState
    objectives, ended = None, state.FAIL
    if trial.evaluation is None:
        known["reason"] = trial.reason
    else:
        evaluation = trial.evaluation
        known |= {"memory_bytes": evaluation.memory_bytes, "seconds": evaluation.seconds, **evaluation.metrics}
        if trial.proposal.predicted_loss is not None:
            known["predicted_loss"] = trial.proposal.predicted_loss
        if trial.fidelity >= 1.0:
            objectives, ended = [evaluation.loss, evaluation.memory_bytes / 2**20], state.COMPLETE
        else:
            known["loss at this fidelity"], ended = evaluation.loss, state.PRUNED
    made = optuna.trial.create_trial(
        state=ended, values=objectives, params=dict(zip(distributions, values, strict=True)),
        distributions=distributions, user_attrs=known,
    )  # fmt: skip
    # create_trial dates the trial now.
    made.datetime_start = datetime.fromtimestamp(trial.proposed_at)
    made.datetime_complete = datetime.fromtimestamp(trial.finished_at or trial.proposed_at)
    return made
