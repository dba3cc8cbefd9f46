"""The evaluator that a config names, built with the objects in memory that it is given."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from qra_search import plugins
from qra_search.config import RunConfig
from qra_search.errors import BadInput, RunFailed, bad_input
from qra_search.evaluation.evaluator import CANNOT_TUNE, Evaluator, Progress
from qra_search.sections import DEFAULT_STRATEGY
from qra_search.strategies import make_strategy


def build_evaluator(
    config: RunConfig, progress: Progress, *, weights: bool = True, objects: Mapping[str, Any] | None = None
) -> Evaluator:
    """The evaluator that a config names.

    Args:
        weights: False: it will only be asked for its space and estimates; one that can then does without weights.
        objects: model, tokenizer, task and metrics in memory, by these names.

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


def check_tunes(evaluator: Evaluator, config: RunConfig) -> None:
    """Raises BadInput if the evaluator cannot tune a plan in full."""
    if not evaluator.tunes:
        raise BadInput(f"evaluator {config.evaluator!r} {CANNOT_TUNE}")


def _takes(factory: Any, option: str) -> bool:
    parameters = inspect.signature(factory).parameters
    return option in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
