"""What a search will cost, and what it may gain, said before it is begun."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qra_search.evaluation.evaluator import Evaluator
from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.report import formatting
from qra_search.study.forecast import Forecast

DEAR = 1 / 3
"""Share of a search's evaluations from which on the prior's charge is warned of."""


@dataclass(frozen=True)
class Costs:
    """What a search takes, foretold.

    Attributes:
        evaluations: full evaluations that it may spend.
        prior: of these, charged for the sensitivities.
        seconds: of a full evaluation; nan if nothing tells it.
    """

    evaluations: float
    sensitivities: float
    seconds: float = math.nan

    @property
    def left(self) -> float:
        """Evaluations that are left for plans."""
        return max(0.0, self.evaluations - self.sensitivities)

    @property
    def dear(self) -> bool:
        """Whether the sensitivities take so much that little is left of the search."""
        return self.sensitivities > DEAR * self.evaluations

    @property
    def text(self) -> str:
        """In a sentence, with a warning if the sensitivities are dear."""
        count = round(self.left)
        time = f", about {formatting.duration(count * self.seconds)}" if math.isfinite(self.seconds) else ""
        return f"{count} plans tuned briefly{time}; {self.charge_text}"

    @property
    def charge_text(self) -> str:
        """What the sensitivities are charged, with a warning if they are dear."""
        known = f"the sensitivities are charged as {formatting.evaluations_text(self.sensitivities)} of "
        known += f"{formatting.evaluations_text(self.evaluations)} evaluations"
        if not self.dear:
            return known
        return f"{known}: more than a third, so raise --evaluations (or evaluation.steps, of which each has few)"


def foretold_costs(
    evaluator: Evaluator, evaluations: float, sensitivities: Sensitivities | None = None
) -> Costs | None:
    """What a search of so many evaluations will cost; None if nothing tells it.

    Args:
        sensitivities: if they are measured: their cost is known then.
    """
    charge = evaluator.sensitivities_charge() if sensitivities is None else sensitivities.cost
    return None if charge is None else Costs(evaluations, charge, evaluator.evaluation_seconds())


def worth_text(foretold: Forecast | None) -> str:
    """What a search may gain over the plan that the sensitivities choose."""
    if foretold is not None and foretold.rival is not None and foretold.rival.certain:
        return (
            "it checks the prediction, and insures against sensitivities that are wrong; on SmolLM2-135M, tuned to the "
            "end, its plans and these differed by less than 1% (docs/study.md)"
        )
    return "the predicted difference to uniform plans is too small to rely on: a search measures it"
