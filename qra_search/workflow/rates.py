"""The learning rate of a full tuning, chosen by short tunings of the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from qra_search.config import RunConfig, make_config
from qra_search.errors import BadInput, RunFailed
from qra_search.evaluation.evaluator import EvaluationFailed, Evaluator
from qra_search.launched import standing
from qra_search.space.space import Plan
from qra_search.study.listener import Listener

PART = 10
"""A short tuning has one step for so many of the full one, but no fewer than an evaluation of a search."""


def choose_rate(
    build: Callable[[RunConfig], Evaluator], config: RunConfig, plan: Plan, rates: Sequence[float], listener: Listener
) -> RunConfig:
    """The settings with the learning rate that has the lowest validation loss after a short tuning of the plan.

    Args:
        build: makes the evaluator of settings.

    Raises:
        BadInput: several processes tune together.
        RunFailed: the plan cannot be tuned at any of the rates.
    """
    if standing()[1] > 1:
        raise BadInput("rates are tried by one process: try them without torchrun, then set training.learning_rate")
    train = build(config).row_counts().get("train")
    steps = config.finetune.steps if train is None else train.asked // config.training.rows_a_step
    steps = max(config.evaluation.steps, steps // PART)
    losses: dict[float, float] = {}
    for rate in rates:
        tried = _change(config, {"training.learning_rate": rate, "evaluation.steps": steps})
        try:
            losses[rate] = build(tried).evaluate(plan).loss
        except EvaluationFailed as error:
            listener.say(f"learning rate {rate:g}: {error}")
            continue
        listener.say(f"learning rate {rate:g}: validation loss {losses[rate]:.4f} after {steps} steps")
    if not losses:
        raise RunFailed(f"the plan cannot be tuned at any of {len(rates)} learning rates: give lower ones")
    best = min(losses, key=losses.__getitem__)
    listener.say(f"the full tuning has learning rate {best:g}")
    return _change(config, {"training.learning_rate": best})


def read_rates(text: str) -> list[float]:
    """Learning rates that are separated by commas.

    Raises:
        BadInput: something else is among them.
    """
    try:
        rates = list(map(float, text.split(",")))
    except ValueError:
        rates = []
    if not rates or min(rates) <= 0 or not all(map(math.isfinite, rates)):
        raise BadInput(f"--rates is {text!r}: learning rates above 0, separated by commas, are needed")
    return rates


def _change(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    return make_config(config.model_dump(mode="json"), values, source="options")
