"""The evaluator that a config names, and the live objects that it may be given."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from qra_search import plugins
from qra_search.config import RunConfig
from qra_search.errors import BadInput, RunFailed, bad_input
from qra_search.evaluation.evaluator import CANNOT_TUNE, Evaluator, Progress
from qra_search.sections import DEFAULT_STRATEGY
from qra_search.strategies import make_strategy


def object_names(config: RunConfig | None, model: Any, tokenizer: Any, task: Any) -> dict[str, Any]:
    """The names that stand in a config for a model and a task, of which either may be a live object.

    Args:
        config: says which evaluator knows such objects; None: the usual one.

    Raises:
        BadInput: an object that the evaluator does not take.
    """
    given = {name: value for name, value in (("model", model), ("task", task)) if not isinstance(value, (str, Path))}
    given = {name: value for name, value in {**given, "tokenizer": tokenizer}.items() if value is not None}
    names = {name: value for name, value in (("model", model), ("task", task)) if name not in given}
    if not given:
        return names
    evaluator = (config or RunConfig()).evaluator
    if evaluator not in plugins.names("objects"):
        raise BadInput(f"evaluator {evaluator!r} takes no live {next(iter(given))}: give its name or folder")
    with bad_input():
        registered: dict[str, str] = plugins.load("objects", evaluator)(**given)
        return names | registered


def build_evaluator(config: RunConfig, progress: Progress, *, weights: bool = True) -> Evaluator:
    """The evaluator that a config names.

    Args:
        weights: False: it will only be asked for its space and estimates; one that can then does without weights.

    Raises:
        BadInput: an unknown name, or settings that the evaluator refuses.
    """
    with bad_input():
        if config.search.options or config.search.strategy != DEFAULT_STRATEGY:  # scipy is for no refusal
            make_strategy(config.search.strategy, **config.search.options)  # before the model is loaded for nothing
        factory = plugins.load("evaluators", config.evaluator)
        options = {"progress": progress, **({} if weights else {"weights": False})}
        try:
            evaluator: Evaluator = factory(config, **{k: v for k, v in options.items() if _takes(factory, k)})
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
