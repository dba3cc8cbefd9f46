"""What a study takes, and what is said of anything else."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from qra_search.errors import needed
from qra_search.evaluation.evaluator import Evaluator
from qra_search.evaluation.sensitivities import Sensitivities


def check_evaluator(evaluator: Any) -> Evaluator:
    """The evaluator itself, or BadInput if it is none."""
    if isinstance(evaluator, Evaluator):
        return evaluator
    wanted = "an Evaluator is needed; a search of a model and task by name is `plan(model, task)` or `qra search`"
    raise needed("evaluator", evaluator, "an instance of it is needed" if isinstance(evaluator, type) else wanted)


def check_options(evaluations: Any, seed: Any, sensitivities: Any) -> None:
    """Raises BadInput for the first option that is of another kind than a study takes."""
    if not (isinstance(evaluations, Real) and 0 < float(evaluations) < math.inf):
        raise needed("evaluations", evaluations, "a positive number is needed")
    if not (isinstance(seed, Integral) and int(seed) >= 0):
        raise needed("seed", seed, "a whole number from 0 on is needed")
    if not (sensitivities is None or isinstance(sensitivities, Sensitivities)):
        raise needed(
            "sensitivities", sensitivities, "Sensitivities are needed; of JSON data Sensitivities.from_dict makes them"
        )
