"""Tasks by name: what the model is tuned on and judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qra_eval.tasks.base import Task
from qra_eval.tasks.encoding import Encoded, encode
from qra_eval.tasks.example import SPLITS, Example, SplitName
from qra_eval.tasks.sources import READERS, is_file_name, is_hub_name
from qra_search import plugins
from qra_search.errors import shortened

__all__ = ["SPLITS", "Encoded", "Example", "SplitName", "Task", "encode", "make_task"]


def make_task(name_or_path: str, *, data: str | Path | None = None, seed: int = 0, **options: Any) -> Task:
    """The task of a name, of a file of prompts and answers or chats, or of a data set on the hub.

    Args:
        name_or_path: a name among the `qra.tasks` plug-ins, a file (.jsonl, .json, .csv, .tsv, .parquet), or
            `owner/name` on the hub.
        data: folder or file with its data.
        seed: of the splits.
        options: keyword options of the task.

    Raises:
        ValueError: unknown task (with the nearest names), or an option or data that it does not take.
    """
    if is_file_name(name_or_path) or is_hub_name(name_or_path):
        if data is not None:
            raise ValueError(f"the task {name_or_path!r} is its own data: leave out {str(data)!r}")
        name_or_path, data = "jsonl", name_or_path
    elif Path(name_or_path).is_file():
        raise ValueError(
            f"{name_or_path}: data files end in {', '.join(READERS)}; for running text use --task text --data FILE"
        )
    factory = plugins.load("tasks", name_or_path)
    try:
        return factory(data=None if data is None else str(data), seed=seed, **options)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise ValueError(f"task {name_or_path!r}: unknown option {str(error).rpartition(' ')[2]}") from error
        given = ", ".join(f"{name}={shortened(value)}" for name, value in options.items())
        raise ValueError(f"task {name_or_path!r}: an option is of the wrong kind in {given} ({error})") from error
