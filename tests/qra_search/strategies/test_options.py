"""Options of a strategy are held against what it declares, in Python and on the command line alike."""

from __future__ import annotations

import pytest
from fakes import AdditiveEvaluator

from qra_search import BadInput, Plan, Study, search
from qra_search.log.state import StudyState
from qra_search.plugins import call_with_options
from qra_search.schemas import Proposal
from qra_search.strategies import Strategy
from qra_search.strategies.baselines.nsga2 import NSGA2Strategy


class OwnStrategy(Strategy):
    """As a user writes one: with a type of its own, and one that takes no text."""

    name = "own"

    def __init__(self, start: Plan | None = None, depth: int = 2):
        self.start, self.depth = start, depth

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        return []


def test_a_search_takes_options_of_its_strategy():
    study = Study(AdditiveEvaluator(), strategy="nsga2", options={"population": 8})
    assert isinstance(study.strategy, NSGA2Strategy)
    assert study.strategy.population == 8
    few, many = (
        search(
            AdditiveEvaluator(),
            "nsga2",
            options={"population": n},
            evaluations=12,
            memory_budget="uniform3r8",
        )
        for n in (4, 16)
    )
    assert [t.plan for t in few.trials] != [t.plan for t in many.trials]


@pytest.mark.parametrize(
    ("strategy", "options", "said"),
    [
        (
            "nsga2",
            {"population": "many"},
            "option 'population' of strategy 'nsga2' is 'many': input should be a valid integer",
        ),
        ("qra", {"draws": 1.5}, "option 'draws' of strategy 'qra' is 1.5: input should be a valid integer"),
        (
            "nsga2",
            {"populaton": 3},
            "unknown option of strategy 'nsga2': 'populaton': did you mean population",
        ),
        ("random", {"colour": "red"}, "unknown option of strategy 'random': 'colour': there are none"),
        ("nsga2", {"population": 1}, "'population' of the strategy must be at least 2, got 1"),
        ("qra", {"draws": 0}, "'draws' of strategy 'qra' must be at least 1, got 0"),
        (
            OwnStrategy(),
            {"depth": 1},
            "options are given (depth), and the strategy is an object: pass them to its constructor",
        ),
    ],
)
def test_an_option_that_cannot_be_is_named_with_what_is_taken(strategy, options, said):
    with pytest.raises(BadInput) as caught:
        Study(AdditiveEvaluator(), strategy=strategy, options=options)
    assert said in str(caught.value)


def test_a_value_of_the_declared_type_or_a_text_of_it_is_taken():
    plan = Plan((2,), (4,))
    own = call_with_options(OwnStrategy, "strategy 'own'", {"start": plan, "depth": "3"})
    assert own.start is plan and own.depth == 3
