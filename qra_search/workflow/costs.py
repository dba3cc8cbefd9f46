"""What a search will cost, and what it may gain, said before it is begun."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qra_search.evaluation.evaluator import Evaluator
from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.report import formatting
from qra_search.study.forecast import Forecast


@dataclass(frozen=True)
class Costs:
    """What a search takes, foretold.

    Attributes:
        evaluations: full evaluations of plans that it may spend.
        sensitivities: so many more take as long as measuring these; 0 if that is done.
        seconds: of a full evaluation; nan if nothing tells it.
    """

    evaluations: float
    sensitivities: float = 0.0
    seconds: float = math.nan

    @property
    def text(self) -> str:
        """In a sentence."""
        count = formatting.evaluations_text(self.evaluations)
        return f"{count} plans tuned briefly{self._time(self.evaluations)}{self.sensitivities_text}"

    @property
    def sensitivities_text(self) -> str:
        """What is measured before the evaluations, and comes on top of them."""
        if not self.sensitivities:
            return ""
        count = formatting.evaluations_text(self.sensitivities)
        return f"; before them the sensitivities, as long as {count} more{self._time(self.sensitivities)}"

    def _time(self, count: float) -> str:
        return f", about {formatting.duration(count * self.seconds)}" if math.isfinite(self.seconds) else ""


def foretold_costs(
    evaluator: Evaluator, evaluations: float, sensitivities: Sensitivities | None = None
) -> Costs | None:
    """What a search of so many evaluations will cost; None if nothing tells it.

    Args:
        sensitivities: if they are measured: they cost nothing more then.
    """
    charge = evaluator.sensitivities_charge() if sensitivities is None else 0.0
    return None if charge is None else Costs(evaluations, charge, evaluator.evaluation_seconds())


def worth_text(foretold: Forecast | None) -> str:
    """What a search may gain over the plan that the sensitivities choose."""
    if foretold is not None and foretold.rival is not None and foretold.rival.certain:
        return (
            "it checks the prediction, and insures against sensitivities that are wrong; on SmolLM2-135M, tuned to the "
            "end, its plans and these differed by less than 1% (docs/study.md)"
        )
    return "the predicted difference to uniform plans is too small to rely on: a search measures it"
