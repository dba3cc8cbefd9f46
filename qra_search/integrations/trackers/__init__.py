"""A search followed in another tool: MLflow, TensorBoard, Trackio, each a `Callback` behind an extra of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from qra_search import plugins
from qra_search.errors import install_hint
from qra_search.integrations.trackers.base import Tracker

__all__ = ["Tracker", "check_tracker", "make_tracker"]


def make_tracker(spec: str, folder: str | Path, *, say: Callable[[str], None] | None = None) -> Tracker:
    """The tracker of a text such as `tensorboard` or `mlflow:sqlite:///runs.db`.

    Args:
        spec: name of an installed tracker; after a colon, where it writes (each tracker has a default of its own).
        folder: of the run, whose name names it in the tool.
        say: hears of a tool that fails while the search runs; default: a warning.

    Raises:
        UnknownName: no such tracker is installed.
        ImportError: the tool's package is missing; the message names the extra that brings it.
        ValueError, OSError: it cannot write there.
    """
    kind, where = check_tracker(spec), spec.partition(":")[2]
    try:
        tracker = kind(Path(folder), where.strip() or None)
    except ImportError as error:
        raise _missing(kind, error.name) from None
    tracker.say = say or tracker.say
    return tracker


def check_tracker(spec: str) -> type[Tracker]:
    """The class of a tracker, whose tool is installed; nothing is begun in the tool.

    Raises:
        UnknownName, ImportError: as `make_tracker` does.
    """
    kind: type[Tracker] = plugins.load("trackers", spec.partition(":")[0].strip())
    if kind.package and importlib.util.find_spec(kind.package) is None:
        raise _missing(kind, kind.package)
    return kind


def _missing(kind: type[Tracker], package: str | None) -> ImportError:
    return ImportError(f"tracker {kind.name!r} needs {package}: {install_hint(kind.extra)}")
