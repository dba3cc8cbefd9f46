"""Checks of what a study is given: each returns its argument, or says what is needed instead."""

from __future__ import annotations

import math
import operator

from qra_search.errors import needed
from qra_search.evaluation.evaluator import Evaluator
from qra_search.evaluation.prior import Prior


def check_evaluator(evaluator: object) -> Evaluator:
    """The evaluator itself, or BadInput if it is none."""
    if isinstance(evaluator, Evaluator):
        return evaluator
    if isinstance(evaluator, type):
        raise needed("evaluator", evaluator, "an instance of it is needed")
    raise needed(
        "evaluator", evaluator,
        "an Evaluator is needed; a search of a model and task by name is `run(config, folder)` or `qra search`",
    )  # fmt: skip


def check_evaluations(evaluations: float) -> float:
    """The number itself, or BadInput if it is no positive one."""
    try:
        number = math.nan if isinstance(evaluations, str) else float(evaluations)
    except TypeError:
        number = math.nan
    if not 0 < number < math.inf:
        raise needed("evaluations", evaluations, "a positive number is needed")
    return number


def check_seed(seed: int) -> int:
    """The seed itself, or BadInput if it is no whole number from 0 on."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise needed("seed", seed, "a whole number from 0 on is needed")
    return number


def check_prior(prior: Prior | None) -> Prior | None:
    """The prior itself, or BadInput if it is of another type."""
    if prior is not None and not isinstance(prior, Prior):
        raise needed("prior", prior, "a Prior is needed; of JSON data Prior.from_dict makes one")
    return prior
