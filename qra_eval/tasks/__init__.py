"""Tasks by name, or from a user's rows: what the model is tuned on and judged by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_eval.tasks.base import Task, render_example
from qra_eval.tasks.example import FIELDS, SPLITS, Example
from qra_eval.tasks.sources import is_data_path, is_hub_name
from qra_search import plugins
from qra_search.errors import BadInput, shorten
from qra_search.plugins import IN_MEMORY_PREFIX

__all__ = ["SPLITS", "Example", "Task", "make_task", "render_example"]


def make_task(task: Any, *, data: Any = None, seed: int = 0, **options: Any) -> Task:
    """The task of a name, of rows in a file, on the hub or in Python, or a task itself.

    Args:
        task: a name among the `qra.tasks` plug-ins, a class as `FILE.py:NAME`, a file (.jsonl, .json, .csv, .tsv,
            .parquet), a folder with one for each split, `owner/name` on the hub, a `Dataset` or a list of dictionaries
            (which are split as a file's rows are), a `DatasetDict`, or a `Task`, which has a seed of its own. Rows of
            `{"text"}` are running text.
        data: folder or file with its data, or rows as above, for a task that is given by name.
        seed: of the splits.
        options: keyword options of the task.
    """
    if isinstance(task, Task):
        if data is not None or options:
            raise BadInput(f"the task {task.name!r} is an object: pass data and options to its constructor")
        return task
    name = str(task) if isinstance(task, str | Path) else None
    if name is None or is_data_path(name) or is_hub_name(name):
        if data is not None:
            raise BadInput(f"the task {shorten(task)} already holds the data: remove {shorten(data)}")
        name = "text" if _is_text(task) else "jsonl"
        data = task
    elif name.startswith(IN_MEMORY_PREFIX):
        raise BadInput("this run uses an in-memory task: pass it to open_run(), or save it and plan again")
    factory = plugins.load_object(name) if plugins.is_object_path(name) else plugins.load("tasks", name)
    made: Task = plugins.call_with_options(
        factory, f"task {name!r}", options, data=str(data) if isinstance(data, Path) else data, seed=seed
    )
    return made


def _is_text(rows: Any) -> bool:
    """Whether data are running text: a .txt file, or rows whose first has a field `text` and none of another form."""
    if isinstance(rows, str | Path):
        return str(rows).endswith(".txt")
    some = next(iter(rows.values()), ()) if isinstance(rows, Mapping) else rows
    first = next(iter(some), None) if hasattr(some, "__iter__") else None
    return isinstance(first, Mapping) and "text" in first and not set(FIELDS) & set(first)
