"""What needs no search: the sensitivities' plans, at the learning rate that short tunings foretell.

qra bench --task tunings-banking77 --strategy ./benchmarks/strategies/foretold.py --strategy nsga2 -n 25
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from qra_search.allocate.solve import solve
from qra_search.app.rates import LAW_SLOPE
from qra_search.log.state import StudyState
from qra_search.schemas import LENGTH_PARAMETER, Plan, Proposal
from qra_search.strategies import Strategy


class ForetoldRate(Strategy):
    """Tunes the plan of the largest budget briefly at every rate, then each budget's plan at the rate that follows.

    The best rate of the short tunings is the top of the parabola through the best of them and its neighbours. That of
    the full length follows by the slope that `qra finetune` has. What is left of the search budget goes to the next
    rates on either side, nearest first.
    """

    name = "foretold"
    searches_extra = True

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        new = (plan for plan in self._list_plans(state) if plan not in state.seen)
        return [
            Proposal(plan, seed=state.seed, origin="foretold") for plan, _ in zip(new, range(n), strict=False)
        ]

    def _list_plans(self, state: StudyState) -> Iterator[Plan]:
        """All plans in order; the short tunings alone until they have ended."""
        rates, lengths = (state.space.extra[name].values for name in ("learning_rate", LENGTH_PARAMETER))
        plain = state.space.without_extra
        plans = [solve(plain, state.sensitivities, budget).plan for budget in reversed(state.budgets)]
        short = [set_extra(plans[0], rate, lengths[0]) for rate in rates]
        yield from short
        losses = {trial.plan: trial.loss for trial in state.done if trial.plan in short}
        if len(losses) < len(short):
            return
        best = find_top(np.log2(rates), np.log([losses[plan] for plan in short]))
        foretold = best + LAW_SLOPE * np.log2(lengths[-1] / lengths[0])
        for rate in sorted(rates, key=lambda rate: abs(np.log2(rate) - foretold)):
            for plan in plans:
                yield set_extra(plan, rate, lengths[-1])


def set_extra(plan: Plan, rate: float, length: float) -> Plan:
    return replace(plan, extra=(("learning_rate", rate), (LENGTH_PARAMETER, length)))


def find_top(places: np.ndarray, losses: np.ndarray) -> float:
    """Where the parabola through the least loss and its neighbours is least; the place itself at an end."""
    least = int(losses.argmin())
    if least in (0, len(losses) - 1):
        return float(places[least])
    near = slice(least - 1, least + 2)
    bend, slope, _ = np.polyfit(places[near], losses[near], 2)
    return float(-slope / (2 * bend))
