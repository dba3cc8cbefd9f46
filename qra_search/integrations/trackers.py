"""A search or a tuning followed in another tool, such as TensorBoard or MLflow, through the trackers of accelerate."""

from __future__ import annotations

import importlib
import importlib.util
import math
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qra_search.errors import BadInput, bad_input, one_line
from qra_search.evaluation.evaluator import Figures
from qra_search.files import read_json, write_json
from qra_search.integrations import TRACKERS
from qra_search.log.trial import Trial
from qra_search.plugins import UnknownName, unknown_message
from qra_search.report.progress import BestSoFar
from qra_search.runs.comparison import TUNING
from qra_search.space.memory import format_bytes
from qra_search.study.study import Callback, Study

PROJECT = "qra"
"""The project or experiment that runs are put in."""
KNOWN_FILE = "trackers.json"


class Tracker(Callback):
    """Sends the settings of a study to a tool once, and figures after every evaluation.

    The step of a figure is the index of its trial. A resumed study continues the same run of the tool if the tool can
    do so (`_options`); the run's identity is kept in the trial log. A study that was not tracked before is sent from
    its first trial on. A tool that fails after the start gets nothing more, and `say` gets the reason.

    Args:
        spec: name of the tool; after a colon, where it writes: a folder (TensorBoard, Aim), a tracking server or store
            (MLflow), else a project.
        folder: of the run or of its tunings; the run is named after it, and by default files are written there.
        say: gets one line if the tool fails while the search runs; default: a warning.

    Raises:
        UnknownName, ImportError: as `check_tracker` does.
        OSError: the folder that it writes to cannot be made.
    """

    def __init__(self, spec: str, folder: str | Path, *, say: Callable[[str], None] | None = None):
        self._kind = check_tracker(spec)
        tool, _, where = spec.partition(":")
        path = Path(folder).resolve()
        self.spec, self.tool, self.where = spec, tool.strip(), where.strip() or None
        self.run = f"{path.parent.name}-{TUNING}" if path.name == TUNING else path.name
        self.say = say or warnings.warn
        self.failed = False
        self.best = BestSoFar()
        self._client: Any = None
        self._place: tuple[str, ...] = (PROJECT if self.tool == "mlflow" else self.where or PROJECT,)
        if self._kind.requires_logging_directory:
            self._place = (self.tool, str(folder)) if self.where is None else (self.run, self.where)
            made = Path(self._place[1]) / (self._place[0] if self.tool == "tensorboard" else "")
            made.mkdir(parents=True, exist_ok=True)  # fails here, before a search has cost anything

    def begin(self, settings: Mapping[str, Any], known: str | None) -> str:
        """Begin a run in the tool, or resume the known one, and return its identity.

        Args:
            settings: by dotted name.
            known: what `begin` returned when the study was begun; None if it was not tracked yet.

        Raises:
            BadInput: the tool refuses.
        """
        from accelerate.state import PartialState

        identity = known or uuid.uuid4().hex
        try:
            PartialState()  # accelerate's loggers refuse to work without it
            if self.tool == "mlflow" and self.where is not None:
                importlib.import_module("mlflow").set_tracking_uri(self.where)
            options = _options(self.tool, self.run, identity, resumed=known is not None)
            self._client = self._kind(*self._place, **options)
            self._client.start()
            if known is None:
                self._client.store_init_configuration({name: _plain(value) for name, value in settings.items()})
            if self.tool == "wandb":  # its own step never goes back, but trials end in any order
                self._client.tracker.define_metric("*", step_metric="step")
            return str(self._client.tracker.info.run_id) if self.tool == "mlflow" else identity
        except Exception as error:  # each tool has exceptions of its own
            place = f"in {self.where}" if self.where else "in its default place"
            raise BadInput(
                f"tracker {self.tool!r} cannot begin {place} ({type(error).__name__}: {one_line(str(error), 200)}): "
                f"give another place as --track {self.tool}:PLACE, or leave it out"
            ) from error

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send figures; the first error of the tool is reported by `say`, and nothing is sent after it."""
        finite = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
        if self.tool == "wandb":
            self._attempt(lambda: self._client.log({**finite, "step": step}))
        else:
            self._attempt(lambda: self._client.log(finite, step=step))

    def finish(self) -> None:
        """End the run in the tool."""
        self._attempt(lambda: self._client.finish())

    # -- the callback ------------------------------------------------------------------------------
    def started(self, study: Study) -> None:
        key = f"tracker:{self.spec}"
        known = study.log.meta(key)
        identity = self.begin(settings_of(study), known)
        if identity != known:
            study.log.set_meta(key, identity)
        self.best = BestSoFar.of(study, trials=())
        for trial in study.log.trials:
            if trial.status != "running":
                self.best.add(trial)
                if known is None:
                    self.log(figures_of(trial, self.best), trial.id)

    def finished(self, study: Study, trial: Trial) -> None:
        self.best.add(trial)
        self.log(figures_of(trial, self.best), trial.id)

    def ended(self, study: Study) -> None:
        found = study.result().best()
        if found is not None and found.evaluations:
            figures = {"result/loss": found.loss, "result/memory_mib": found.memory_bytes / 2**20}
            self.log(figures, len(study.log.trials))
        self.finish()

    def _attempt(self, act: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            act()
        except Exception as error:  # whatever goes wrong in another tool must not cost the user a search
            self.failed = True
            reason = one_line(str(error), 300)
            self.say(f"{self.tool} gets no more, the run goes on: {type(error).__name__}: {reason}")


def check_tracker(spec: str) -> type[Any]:
    """accelerate's class for the tool of a text such as `tensorboard` or `mlflow:sqlite:///runs.db`.

    Raises:
        UnknownName: no such tool.
        ImportError: its package is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    tool = spec.partition(":")[0].strip()
    if tool not in LOGGER_TYPE_TO_CLASS:
        raise UnknownName(unknown_message("tracker", tool, LOGGER_TYPE_TO_CLASS))
    if tool in TRACKERS and importlib.util.find_spec(tool) is None:
        raise ImportError(f"tracker {tool!r} needs the package {tool}: pip install {tool}")
    kind: type[Any] = LOGGER_TYPE_TO_CLASS[tool]
    return kind


@contextmanager
def tracked(
    specs: Sequence[str], folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]
) -> Iterator[Callable[[str], Figures]]:
    """Trackers of a comparison's tunings: by the name of a tuning, a function that sends the figures of its steps.

    A figure is called `<tuning>/<figure>`. A resumed comparison continues the same run of a tool.

    Args:
        folder: of the tunings, beside the comparison.
        settings: by dotted name.

    Raises:
        BadInput: no such tracker, its tool is not installed, or it cannot write there.
    """
    known = read_json(folder / KNOWN_FILE) or {}
    with bad_input():
        trackers = [Tracker(spec, folder, say=say) for spec in specs]
        for tracker in trackers:
            known[tracker.spec] = tracker.begin(settings, known.get(tracker.spec))
    if trackers:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / KNOWN_FILE, known)

    def of(tuning: str) -> Figures:
        def send(step: int, figures: Mapping[str, float]) -> None:
            for tracker in trackers:
                tracker.log({f"{tuning}/{name}": value for name, value in figures.items()}, step)

        return send

    try:
        yield of
    finally:
        for tracker in trackers:
            tracker.finish()


def settings_of(study: Study) -> dict[str, Any]:
    """What a study was begun with, by dotted name."""
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


def figures_of(trial: Trial, best: BestSoFar) -> dict[str, float]:
    """The figures after a trial: its own, and those of the search so far.

    `best/SIZE` is the lowest mean loss within a budget, `gain/SIZE` how much lower than the best uniform plan's it is,
    as a share.
    """
    figures = {"spent": best.spent, "failed": float(best.failed), "fidelity": trial.fidelity}
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
    for budget in best.budgets:
        found, size = best.best(budget), format_bytes(budget).replace(" ", "")
        if found is not None:
            figures |= {f"best/{size}": found[1], f"gain/{size}": best.gain(budget)}
    return figures


def flat(data: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Pairs of dotted name and value of nested mappings."""
    pairs: list[tuple[str, Any]] = []
    for name, value in data.items():
        if isinstance(value, Mapping):
            pairs += flat(value, f"{before}{name}.")
        else:
            pairs.append((f"{before}{name}", value))
    return pairs


def _options(tool: str, run: str, identity: str, *, resumed: bool) -> dict[str, Any]:
    """What a tool is told of a run's name and identity; one that is not named here begins a new run each time."""
    match tool:
        case "wandb":
            return {"name": run, "id": identity, "resume": "allow"}
        case "swanlab":
            return {"experiment_name": run, "id": identity, "resume": "allow"}
        case "comet_ml":
            return {"experiment_key": identity}
        case "trackio":
            return {"name": f"{run}-{identity[:8]}", "resume": "allow", "embed": False}
        case "mlflow":
            return {"run_name": run, "run_id": identity if resumed else None}
    return {}


def _plain(value: Any) -> int | float | str | bool:
    return value if isinstance(value, (int, float, str)) else str(value)
