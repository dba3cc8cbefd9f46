"""How a run begins in Python: planned for a model and a task, or opened from its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qra_search.app.config import (
    RunConfig,
    make_absolute,
    make_folder_name,
    make_in_memory_name,
    make_settings,
)
from qra_search.app.folder import RunFolder
from qra_search.app.report.live import ProgressArgument
from qra_search.app.run import Run
from qra_search.errors import BadInput


def plan(
    model: str | Path | None = None,
    task: Any = None,
    *,
    memory: int | str | Sequence[int | str] | None = None,
    out: str | Path | None = None,
    metrics: Mapping[str, Callable[..., float]] | None = None,
    config: RunConfig | Mapping[str, Any] | str | Path | None = None,
    progress: ProgressArgument = None,
) -> Run:
    """Choose bits and rank of every layer for a budget from measured sensitivities, without training.

    Does what `qra plan` does, and leaves the same folder.

    Args:
        model: a name, a folder, a GGUF file, a hub id.
        task: a name, a file of rows, a data set on the hub; or a `datasets.Dataset` or `DatasetDict`, a list of
            dictionaries, an object of the `Task` kind.
        memory: `6GiB`, `3.5bpw`, `75%` of uniform 4-bit, bytes; or several.
        out: folder of the run; default: a new one below `runs/`. A run that is there is resumed.
        metrics: functions of (answer, example) that score generated answers, by name; higher is better.
        config: all other settings: sections of the config as a mapping, such as `{"space": {"bits": [2, 3]}}`, a
            `RunConfig`, or the path of a YAML file.
        progress: as `search` takes it.

    Raises:
        BadInput: what was given cannot be used; nothing was spent.
    """
    objects = _select_objects(task=task, metrics=metrics)
    given = {"model.name": model, "task.name": task, "search.memory": memory}
    named = {
        field: v for field, v in given.items() if v is not None and field.partition(".")[0] not in objects
    }
    made = make_settings(config, named)
    made = made.name_objects(task=objects.get("task"), metrics=metrics)
    run = Run(out or make_folder_name(made), made, objects=objects)
    try:
        run.make_plan(progress=progress)
    except BaseException:
        run.close()  # nobody has the run, to close it later
        raise
    return run


def open_run(
    folder: str | Path,
    *,
    model: str | Path | None = None,
    task: Any = None,
    metrics: Mapping[str, Callable[..., float]] | None = None,
) -> Run:
    """A run that `plan`, `qra plan` or `qra search` made.

    Args:
        model: that it must be a run of.
        task, metrics: the objects in memory that it was made with, if it was.

    Raises:
        NoRun: there is none in the folder.
    """
    there = RunFolder(folder).check()
    config = there.config()
    objects = _select_objects(task=task, metrics=metrics)
    for what, given, known in (("model", model, config.model.name), ("task", task, config.task.name)):
        name = make_in_memory_name(given) if what in objects else given
        if name is not None and known not in (str(name), make_absolute(str(name))):
            raise BadInput(
                f"{there.path} is a run of {what} {known}, but {name} was given: leave {what} out, or make another run"
            )
    return Run(there.path, config, objects=objects)


def _select_objects(**given: Any) -> dict[str, Any]:
    """The arguments that are objects in memory rather than names or paths."""
    return {name: v for name, v in given.items() if v is not None and not isinstance(v, (str, Path))}
