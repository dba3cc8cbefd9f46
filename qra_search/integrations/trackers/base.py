"""What trackers have in common: which figures of a study they get, when, and what becomes of a tool that fails."""

from __future__ import annotations

import math
import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from qra_search.log.trial import Trial
from qra_search.report.progress import BestSoFar
from qra_search.runs.comparison import TUNING
from qra_search.space.memory import format_bytes
from qra_search.study.result import SearchResult
from qra_search.study.study import Callback, Study

PROJECT = "qra"
"""Where runs are gathered in tools that have projects or experiments."""


class Tracker(Callback):
    """Tells another tool of a study: its settings once, figures after every evaluation, the result at the end.

    The step of a figure is the index of its trial. A study that is resumed continues the same run of the tool, whose
    identity is kept in the trial log; one that was not tracked before is sent from its first trial on. A tool that
    fails after the start gets nothing more, and `say` hears why: the search continues without it.

    A tracker of another tool derives from this and is registered in the entry-point group `qra.trackers`.
    """

    name: ClassVar[str]
    extra: ClassVar[str]
    """The extra of this package that brings the tool."""
    package: ClassVar[str] = ""
    """What it imports of the tool, so that a dry run can say that it is missing."""

    def __init__(self, folder: Path, where: str | None):
        """
        Args:
            folder: of the run, whose name names it in the tool, or of its tunings.
            where: what the user wrote after the tool's name.
        """
        path = folder.resolve()
        self.run = f"{path.parent.name}-{TUNING}" if path.name == TUNING else path.name
        self.say: Callable[[str], None] = warnings.warn
        self.standing = BestSoFar()
        self.failed = False

    # -- what a tool has to do ---------------------------------------------------------------------
    @abstractmethod
    def open(self, settings: Mapping[str, Any], known: str | None) -> str:
        """Begin a run, or resume the known one, and return its identity.

        Args:
            settings: plain values by dotted name.
            known: what `open` returned when this study was begun; None for a study that was not tracked yet.
        """

    @abstractmethod
    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Write figures, all finite."""

    @abstractmethod
    def close(self, result: SearchResult, *, complete: bool) -> None:
        """Write what was found and end the run; `complete` is off if the search was stopped."""

    # -- the callback ------------------------------------------------------------------------------
    def started(self, study: Study) -> None:
        sensitivities = study.sensitivities
        self.standing = BestSoFar(
            study.memory_budgets or study.state.budgets,
            study.evaluations,
            sensitivities.cost if sensitivities else 0.0,
            study.space,
        )
        key = f"tracker:{self.name}"
        known = study.log.meta(key)
        identity = self.open(settings_of(study), known)
        if identity != known:
            study.log.set_meta(key, identity)
        for trial in study.log.trials:
            if trial.status != "running":
                self.standing.add(trial)
                if known is None:
                    self.log(figures_of(trial, self.standing), trial.id)

    def finished(self, study: Study, trial: Trial) -> None:
        self.standing.add(trial)
        self.attempt(lambda: self.log(figures_of(trial, self.standing), trial.id))

    def ended(self, study: Study) -> None:
        self.attempt(lambda: self.close(study.result(), complete=not study.stopping))

    def attempt(self, act: Callable[[], None]) -> None:
        """Do something in the tool, unless it failed before; if it fails now, `say` hears of it."""
        if self.failed:
            return
        try:
            act()
        except Exception as error:  # whatever goes wrong in another tool must not cost the user a search
            self.failed = True
            text = " ".join(str(error).split())
            self.say(f"{self.name} gets no more, the run goes on: {type(error).__name__}: {text[:300]}")


def settings_of(study: Study) -> dict[str, Any]:
    """What a study was begun with, as plain values by dotted name."""
    space = study.space
    return {
        "strategy": study.strategy.name,
        "evaluations": study.evaluations,
        "seed": study.seed,
        "memory_budgets": ", ".join(map(format_bytes, study.memory_budgets)) or "the whole front",
        "space.groups": len(space),
        "space.bits": ", ".join(map(str, space.bits)),
        "space.ranks": ", ".join(map(str, space.ranks)),
        "space.fixed_bytes": space.fixed_bytes,
        **{f"evaluator.{name}": value for name, value in flat(study.evaluator.describe())},
    }


def figures_of(trial: Trial, standing: BestSoFar) -> dict[str, float]:
    """The figures after a trial: its own, and how the search stands with it.

    `best/SIZE` is the lowest mean loss within a budget, `gain/SIZE` how much lower than the best uniform plan's it is,
    as a share.
    """
    figures = {"spent": standing.spent, "failed": float(standing.failed), "fidelity": trial.fidelity}
    if trial.evaluation is not None:
        evaluation = trial.evaluation
        figures |= {
            "loss": evaluation.loss,
            "memory_mib": evaluation.memory_bytes / 2**20,
            "seconds": evaluation.seconds,
            **{f"evaluation/{name}": value for name, value in evaluation.metrics.items()},
        }
        if trial.proposal.predicted_loss is not None:
            figures["predicted_loss"] = trial.proposal.predicted_loss
    for budget in standing.budgets:
        best, size = standing.best(budget), size_name(budget)
        if best is not None:
            figures |= {f"best/{size}": best[1], f"gain/{size}": standing.gain(budget)}
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def size_name(size: int) -> str:
    """A size as part of a name: `108.0MiB`."""
    return re.sub(r"[^0-9A-Za-z.]", "", format_bytes(size))


def flat(data: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Pairs of dotted name and value of nested mappings."""
    pairs: list[tuple[str, Any]] = []
    for name, value in data.items():
        if isinstance(value, Mapping):
            pairs += flat(value, f"{before}{name}.")
        else:
            pairs.append((f"{before}{name}", value))
    return pairs
