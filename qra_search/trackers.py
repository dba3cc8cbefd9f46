"""A search or a tuning followed in another tool, such as TensorBoard or MLflow, through the trackers of accelerate."""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qra_search.errors import BadInput, bad_input, one_line
from qra_search.evaluation.evaluator import Figures
from qra_search.log.trial import Trial
from qra_search.plugins import UnknownName, unknown_message
from qra_search.report.progress import BestSoFar
from qra_search.runs.comparison import TUNING
from qra_search.space.memory import format_bytes
from qra_search.study.study import Callback, Study

TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
"""Names of accelerate's trackers. Each is also the name of the package that the tracker needs."""
PROJECT = "qra"
"""The project or experiment that runs are put in."""
NAMED = {"mlflow": "run_name", "swanlab": "experiment_name", "trackio": "name", "wandb": "name"}
"""What the tools call the name of a run."""


class Tracker(Callback):
    """Sends the settings of a study to a tool, and figures after every evaluation; the step is the trial's index.

    A resumed study begins another run in the tool, which gets its earlier trials too.

    Args:
        spec: name of the tool; after a colon, where it writes: a folder (TensorBoard, Aim), a tracking server or store
            (MLflow), else a project.
        folder: of the run or of its tunings; the run is named after it, and by default files are written there.
        say: gets one line if the tool fails after the start; it gets nothing more then. Default: a warning.

    Raises:
        UnknownName, ImportError: as `check_tracker` does.
        OSError: the folder that it writes to cannot be made.
    """

    def __init__(self, spec: str, folder: str | Path, *, say: Callable[[str], None] | None = None):
        self._kind = check_tracker(spec)
        self.tool, self.where = (part.strip() for part in spec.partition(":")[::2])
        self.path = Path(folder).resolve()
        self.run = f"{self.path.parent.name}-{TUNING}" if self.path.name == TUNING else self.path.name
        self.say, self.failed = say or warnings.warn, False
        self.best = BestSoFar()
        self._client: Any = None
        self._place: tuple[str, ...] = (PROJECT if self.tool == "mlflow" else self.where or PROJECT,)
        if self._kind.requires_logging_directory:
            self._place = (self.run, self.where) if self.where else (self.tool, str(self.path))
            made = Path(self._place[1]) / (self._place[0] if self.tool == "tensorboard" else "")
            made.mkdir(parents=True, exist_ok=True)  # fails here, before a search has cost anything

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Begin a run in the tool and send its settings, which may be nested.

        Raises:
            BadInput: the tool refuses.
        """
        from accelerate.state import PartialState

        try:
            PartialState()  # accelerate's loggers refuse to work without it
            if self.tool == "mlflow" and self.where:
                importlib.import_module("mlflow").set_tracking_uri(self.where)
            self._client = self._kind(*self._place, **({NAMED[self.tool]: self.run} if self.tool in NAMED else {}))
            self._client.start()
            self._client.store_init_configuration(flat(settings))
            if self.tool == "wandb":  # its own step never goes back, but trials end in any order
                self._client.tracker.define_metric("*", step_metric="step")
        except Exception as error:  # each tool has exceptions of its own
            raise BadInput(
                f"tracker {self.tool!r} cannot begin {f'in {self.where}' if self.where else 'in its default place'} "
                f"({type(error).__name__}: {one_line(str(error), 200)}): give another place as --track "
                f"{self.tool}:PLACE, or leave it out"
            ) from error

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send figures, if the tool has not failed."""
        finite = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
        if self.tool == "wandb":
            self._attempt(lambda: self._client.log({**finite, "step": step}))
        else:
            self._attempt(lambda: self._client.log(finite, step=step))

    def finish(self) -> None:
        """End the run in the tool."""
        self._attempt(lambda: self._client.finish())

    def started(self, study: Study) -> None:
        space, asked = study.space, ("evaluations", "seed", "memory_budgets")
        choices = {"groups": len(space), "bits": space.bits, "ranks": space.ranks, "fixed_bytes": space.fixed_bytes}
        settings = {"strategy": study.strategy.name, **{name: getattr(study, name) for name in asked}}
        self.begin({**settings, "space": choices, "evaluator": study.evaluator.describe()})
        self.best = BestSoFar.of(study, trials=())
        for trial in study.log.trials:
            if trial.status != "running":
                self.finished(study, trial)

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
        try:
            if not self.failed:
                act()
        except Exception as error:  # whatever goes wrong in another tool must not cost the user a search
            self.failed = True
            self.say(f"{self.tool} gets no more, the run goes on: {type(error).__name__}: {one_line(str(error), 300)}")


def check_tracker(spec: str) -> Any:
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
    return LOGGER_TYPE_TO_CLASS[tool]


@contextmanager
def tracked(
    specs: Sequence[str], folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]
) -> Iterator[Callable[[str], Figures]]:
    """Trackers of a comparison's tunings: by the name of a tuning, a function that sends the figures of its steps.

    A figure is called `<tuning>/<figure>`.

    Raises:
        BadInput: no such tracker, its tool is not installed, or it cannot write there.
    """
    with bad_input():
        trackers = [Tracker(spec, folder, say=say) for spec in specs]
        for tracker in trackers:
            tracker.begin(settings)

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


def figures_of(trial: Trial, best: BestSoFar) -> dict[str, float]:
    """The figures after a trial: its own, and those of the search so far.

    `best/SIZE` is the lowest mean loss within a budget, `gain/SIZE` how much lower than the best uniform plan's it is,
    as a share.
    """
    figures = {"spent": best.spent, "failed": float(best.failed), "fidelity": trial.fidelity}
    if (done := trial.evaluation) is not None:
        figures |= {"loss": done.loss, "memory_mib": done.memory_bytes / 2**20, "seconds": done.seconds}
        figures |= {f"evaluation/{name}": value for name, value in done.metrics.items()}
        if trial.proposal.predicted_loss is not None:
            figures["predicted_loss"] = trial.proposal.predicted_loss
    for budget in best.budgets:
        found, size = best.best(budget), format_bytes(budget).replace(" ", "")
        if found is not None:
            figures |= {f"best/{size}": found[1], f"gain/{size}": best.gain(budget)}
    return figures


def flat(data: Mapping[str, Any], before: str = "") -> dict[str, int | float | str]:
    """Nested mappings by dotted name; what is no number or text becomes one."""
    found: dict[str, int | float | str] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
            found[before + name] = value if isinstance(value, (int, float, str)) else text
    return found
