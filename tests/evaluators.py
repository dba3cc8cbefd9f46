"""The real evaluator from a few flat settings, for tests."""

from __future__ import annotations

from typing import Any

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.config import ModelConfig, SearchConfig, TaskConfig


def make_evaluator(
    model: Any = "tiny", task: Any = "arithmetic", *, weights: bool = True, progress: Any = None, **settings: Any
) -> QuantizedLoRAEvaluator:
    """The evaluator of a model and a task.

    Args:
        task: a name, a file, the fields of `TaskConfig`, rows or a `Task`.
        settings: sections of the config, and fields of its sections `model` and `search`.
    """
    of_model = {name: settings.pop(name) for name in ModelConfig.model_fields if name in settings}
    of_search = {name: settings.pop(name) for name in SearchConfig.model_fields if name in settings}
    named = {"name": task} if isinstance(task, str) else task if isinstance(task, dict | TaskConfig) else None
    sections = {"model": {"name": str(model), **of_model}, "search": of_search, **settings}
    config = sections if named is None else {**sections, "task": named}
    return QuantizedLoRAEvaluator(config, task=task if named is None else None, weights=weights, progress=progress)
