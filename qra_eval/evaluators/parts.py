"""What the real evaluator is made of, from what it was given: a task, a model on its device, sections of a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from qra_eval.models.attention import expect_fast_attention, use_fast_attention
from qra_eval.models.device import keep_few_products
from qra_eval.models.live import register_live
from qra_eval.models.load import load_model
from qra_eval.models.loaded import LoadedModel
from qra_eval.tasks import SPLITS, Task, make_task
from qra_search.config import TaskConfig, make_config
from qra_search.errors import BadInput
from qra_search.evaluation.evaluator import Progress

Section = TypeVar("Section")


def checked_task(task: Any, *, metric: str, seed: int) -> tuple[Task, str]:
    """The task of a name, a config, rows or an object; and its name, as it was asked for.

    Raises:
        BadInput: there is no such task, it has no rows in a split, or not the measure that is wanted.
    """
    if isinstance(task, str):
        task = TaskConfig(name=task)
    elif isinstance(task, Mapping) and "name" in task:
        task = section(TaskConfig, "task", task)
    if isinstance(task, TaskConfig):
        made, name = make_task(task.name, data=task.data, seed=seed, **task.options), task.name
    else:
        made = make_task(task, seed=seed)
        name = made.name
    if metric == "task" and made.judged_by is None:
        raise BadInput(f"search.metric is 'task', and the task {name!r} has no measure of its own: take 'loss'")
    for split in SPLITS:
        if not made.split(split):
            raise BadInput(f"task {name!r} has no rows in its {split} split")
    return made, name


def load_on(
    place: torch.device,
    model: Any,
    tokenizer: Any,
    *,
    dtype: str,
    trust_remote_code: bool,
    weights: bool,
    progress: Progress | None,
) -> LoadedModel:
    """A model by name, or a live one, ready for a device and with the attention that is fast there."""
    if place.type == "cpu":
        keep_few_products()
    if progress is not None:
        progress("load model", 0, 1)
    loaded = load_model(
        str(model) if isinstance(model, (str, Path)) else register_live(model, tokenizer),
        dtype=None if dtype == "auto" else getattr(torch, dtype),
        device=str(place),
        trust_remote_code=trust_remote_code,
        stream=True,
        weights=weights,
    )
    if progress is not None:
        progress("load model", 1, 1)
    if place.type == "cpu":
        (use_fast_attention if weights else expect_fast_attention)(loaded.model)
    return loaded


def section(kind: type[Section], name: str, given: Section | Mapping[str, Any]) -> Section:
    """A section of the config, from itself or from a dict of its fields.

    Raises:
        ConfigError: a field that it does not have, or a value that cannot be.
        TypeError: another kind of thing.
    """
    if isinstance(given, kind):
        return given
    if isinstance(given, Mapping):
        return getattr(make_config({name: dict(given)}, source="QuantizedLoRAEvaluator"), name)
    raise TypeError(f"{name} is a {type(given).__name__}: a {kind.__name__}, or a dict of its fields, is needed")
