"""What a config names and has to be there: its evaluator, and the run that it learns from."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qra_search import plugins
from qra_search.config import RunConfig
from qra_search.errors import BadInput, bad_input
from qra_search.evaluation.evaluator import CANNOT_TUNE, Evaluator, Progress
from qra_search.runs.folder import RunFolder
from qra_search.strategies import make_strategy
from qra_search.study.transfer import check_exists


@dataclass(frozen=True)
class Objects:
    """What a run was given as live objects, in place of names: a model with its tokenizer, and a task."""

    model: Any = None
    tokenizer: Any = None
    task: Any = None

    @classmethod
    def of(cls, model: Any, tokenizer: Any, task: Any) -> Objects:
        """Those of the arguments that are no names or paths.

        Raises:
            BadInput: a live model without its tokenizer, or a tokenizer alone.
        """
        live = None if model is None or isinstance(model, (str, Path)) else model
        if live is not None and tokenizer is None:
            raise BadInput("a live model needs its tokenizer: give tokenizer=AutoTokenizer.from_pretrained(...)")
        if live is None and tokenizer is not None:
            raise BadInput("tokenizer= belongs to a live model: a model by name brings its own, so leave it out")
        return cls(live, tokenizer, None if task is None or isinstance(task, (str, Path)) else task)

    @property
    def given(self) -> dict[str, Any]:
        """Those that there are, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def build_evaluator(
    config: RunConfig, progress: Progress, *, weights: bool = True, objects: Objects | None = None
) -> Evaluator:
    """The evaluator that a config names.

    Args:
        weights: False: it will only be asked for its space and estimates; one that can then does without weights.
        objects: live ones that stand for the config's names.

    Raises:
        BadInput: an unknown name, or settings that the evaluator refuses.
    """
    with bad_input():
        make_strategy(config.search.strategy, **config.search.options)  # before the model is loaded for nothing
        factory = plugins.load("evaluators", config.evaluator)
        options = {"progress": progress, **({} if weights else {"weights": False})}
        given = objects.given if objects is not None else {}
        if refused := [name for name in given if not _takes(factory, name)]:
            raise BadInput(f"evaluator {config.evaluator!r} takes no live {refused[0]}: give its name or folder")
        options |= given
        evaluator: Evaluator = factory(config, **{k: v for k, v in options.items() if _takes(factory, k)})
        return evaluator


def learnt_log(config: RunConfig) -> Path | None:
    """The trial log of the run that a config learns from; None if it learns from none.

    Raises:
        BadInput: there is no such log.
    """
    source = config.search.learn_from
    if source is None:
        return None
    path = RunFolder(source).check().log_file if Path(source).is_dir() else Path(source)
    check_exists(path)
    return path


def on_device(config: RunConfig, device: str | None) -> RunConfig:
    """The config with another device, if one is given: a run may be tuned on another machine than it was searched."""
    if device is None:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"device": device})})


def check_tunes(evaluator: Evaluator, config: RunConfig) -> None:
    """Raises BadInput if the evaluator cannot tune a plan in full."""
    if not evaluator.tunes:
        raise BadInput(f"evaluator {config.evaluator!r} {CANNOT_TUNE}")


def _takes(factory: Any, option: str) -> bool:
    parameters = inspect.signature(factory).parameters
    return option in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
