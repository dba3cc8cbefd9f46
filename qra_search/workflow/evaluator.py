"""The evaluator that a config names, built with the objects in memory that it is given."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_search import plugins
from qra_search.config import RunConfig
from qra_search.errors import BadInput, RunFailed, bad_input
from qra_search.evaluation.evaluator import CANNOT_TUNE, Evaluator, Progress
from qra_search.sections import DEFAULT_STRATEGY
from qra_search.strategies import make_strategy


def select_objects(model: Any, tokenizer: Any, task: Any, metrics: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The model, tokenizer, task and metrics that are given as objects in memory, and not by name or path."""
    given = {"model": model, "tokenizer": tokenizer, "task": task, "metrics": metrics}
    return {name: value for name, value in given.items() if value is not None and not isinstance(value, (str, Path))}


def build_evaluator(
    config: RunConfig, progress: Progress, *, weights: bool = True, objects: Mapping[str, Any] | None = None
) -> Evaluator:
    """The evaluator that a config names.

    Args:
        weights: False: it will only be asked for its space and estimates; one that can then does without weights.
        objects: model, tokenizer, task and metrics in memory; see `select_objects`.

    Raises:
        BadInput: an unknown name, or settings or objects that the evaluator refuses.
    """
    with bad_input():
        if config.search.options or config.search.strategy != DEFAULT_STRATEGY:  # scipy is for no refusal
            make_strategy(config.search.strategy, **config.search.options)  # before the model is loaded for nothing
        factory = plugins.load("evaluators", config.evaluator)
        for name in objects or {}:
            if not _takes(factory, name):
                raise BadInput(f"evaluator {config.evaluator!r} takes no {name} in memory: give its name or folder")
        options = {"progress": progress, **({} if weights else {"weights": False})}
        options = {name: value for name, value in options.items() if _takes(factory, name)}
        try:
            evaluator: Evaluator = factory(config, **options, **(objects or {}))
        except SystemExit as error:
            raise RunFailed(f"evaluator {config.evaluator!r} ended the program while it was built: {error}") from error
        return evaluator


def load_tuned(config: RunConfig, folder: Path, objects: Mapping[str, Any], **options: Any) -> Any:
    """The tuned model of a run's folder, by the `load` of its evaluator.

    Args:
        objects: model and tokenizer in memory that the run was made with, if it was.

    Raises:
        BadInput: the evaluator loads no tuned models, or the folder holds none.
    """
    with bad_input():
        load = getattr(plugins.load("evaluators", config.evaluator), "load", None)
        if load is None:
            raise BadInput(f"evaluator {config.evaluator!r} has no tuned models to load")
        return load(folder, **loading_objects(objects), **options)


def loading_objects(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a run's objects that its tuned model is loaded with."""
    return {name: value for name, value in objects.items() if name in ("model", "tokenizer")}


def check_tunes(evaluator: Evaluator, config: RunConfig) -> None:
    """Raises BadInput if the evaluator cannot tune a plan in full."""
    if not evaluator.tunes:
        raise BadInput(f"evaluator {config.evaluator!r} {CANNOT_TUNE}")


def _takes(factory: Any, option: str) -> bool:
    parameters = inspect.signature(factory).parameters
    return option in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
