"""Models and tasks that a run was given as Python objects: known by name in this process, as those of files are."""

from __future__ import annotations

from typing import Any

from qra_eval.models.live import register_live
from qra_eval.tasks import register_task
from qra_search.errors import BadInput


def register(*, model: Any = None, tokenizer: Any = None, task: Any = None) -> dict[str, str]:
    """Names for the config of a run, by which its evaluator finds the objects as long as they live.

    Args:
        model: a live `PreTrainedModel`, which needs its tokenizer.
        task: rows in Python, or a `Task`.

    Returns:
        `model` and `task`, as far as they were given: `live:<digest>`, `rows:<digest>`, `task:<name>-<digest>`.

    Raises:
        BadInput: an object that cannot be used; one line says why.
    """
    if (model is None) != (tokenizer is None):
        raise BadInput(
            "a live model and its tokenizer belong together: give both; a model that is given by name brings its own"
        )
    names = {} if model is None else {"model": register_live(model, tokenizer)}
    return names if task is None else names | {"task": register_task(task)}
