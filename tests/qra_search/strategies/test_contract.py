"""Every installed strategy keeps the public contract."""

from __future__ import annotations

import pytest

from qra_search import plugins
from qra_search.strategies import Strategy, make_strategy
from qra_search.testing import StrategyContract
from qra_search.testing.contracts import assert_another_process_proposes_the_same

SPECS = plugins.list_names("strategies")
FINITE = ("uniform",)


@pytest.mark.usefixtures("rough")
class TestInstalledStrategies(StrategyContract):
    test_another_process_gives_the_same_proposals = None  # type: ignore[assignment]  # of all at once, below

    @pytest.fixture(params=[s for s in SPECS if s not in FINITE])
    def strategy(self, request) -> Strategy:
        return make_strategy(request.param)


class TestStrategiesWithFewPlans(StrategyContract):
    finite = True
    test_another_process_gives_the_same_proposals = None  # type: ignore[assignment]

    @pytest.fixture(params=FINITE)
    def strategy(self, request) -> Strategy:
        return make_strategy(request.param)


def test_another_process_gives_the_same_proposals() -> None:
    assert_another_process_proposes_the_same([make_strategy(name) for name in SPECS])
