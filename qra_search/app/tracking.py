"""Full tunings followed in another tool, such as TensorBoard or MLflow, by accelerate's trackers."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qra_search.app.config import RunConfig
from qra_search.errors import BadInput, one_line
from qra_search.plugins import describe_unknown

TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
"""Names of accelerate's trackers. Each is also the name of the package that the tracker needs."""
PROJECT = "qra"
"""The project or experiment that runs are put in; of trackers that write files, their folder in the run's."""
Log = Callable[[Mapping[str, float], int], None]
"""Called with figures by name, and a step."""


@contextmanager
def open_trackers(names: str | Sequence[str], folder: Path, config: RunConfig) -> Iterator[Log]:
    """Begin a run in each tool, with the settings of a config; yields what sends finite figures to all of them.

    A tool that fails after its start gets nothing more, with a warning: the run goes on. Raises BadInput for no such
    tracker, one whose package is not installed, or one that cannot begin.
    """
    kinds = find_trackers(names)
    trackers = {name: _begin_tracking(name, kind, folder, config) for name, kind in kinds.items()}

    def call_all(method: str, *arguments: Any, **options: Any) -> None:
        for name, tracker in list(trackers.items()):
            try:
                getattr(tracker, method)(*arguments, **options)
            except Exception as error:  # whatever goes wrong in another tool must not cost the user a tuning
                del trackers[name]
                reason = one_line(repr(error), 300)
                warnings.warn(f"logging to {name} ended, the run continues: {reason}", stacklevel=2)

    def log(figures: Mapping[str, float], step: int) -> None:
        finite = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
        call_all("log", finite, step=step)

    try:
        yield log
    finally:
        call_all("finish")


def find_trackers(names: str | Sequence[str]) -> dict[str, Any]:
    """accelerate's classes by name; raises BadInput if it has no such tracker, or its package is not installed."""
    if not names:
        return {}
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    several = [names] if isinstance(names, str) else names
    for name in several:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise BadInput(describe_unknown("tracker", name, LOGGER_TYPE_TO_CLASS))
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise BadInput(f"tracker {name!r} needs the package {name}: pip install {name}")
    return {name: LOGGER_TYPE_TO_CLASS[name] for name in several}


def _begin_tracking(name: str, kind: Any, folder: Path, config: RunConfig) -> Any:
    from accelerate.state import PartialState

    sections = {n: own for n, own in config.model_dump(mode="json").items() if isinstance(own, dict)}
    settings = {f"{n}.{field}": str(value) for n, own in sections.items() for field, value in own.items()}
    try:
        PartialState()  # accelerate's loggers refuse to work without it
        folder.mkdir(parents=True, exist_ok=True)
        tracker = kind(PROJECT, str(folder)) if kind.requires_logging_directory else kind(PROJECT)
        tracker.start()
        tracker.store_init_configuration({"run": folder.name, "evaluator": config.evaluator, **settings})
        return tracker
    except Exception as error:  # each tool has exceptions of its own
        reason = one_line(repr(error), 200)
        raise BadInput(f"tracker {name!r} cannot begin ({reason}): leave it out, or configure it") from error
