"""The default strategy keeps the contract, and its parts do what they say."""

from __future__ import annotations

import pytest

from qra_search.strategies import make_strategy
from qra_search.strategies.qra import QRAStrategy
from qra_search.testing import StrategyContract


class TestQRA(StrategyContract):
    @pytest.fixture
    def strategy(self):
        return make_strategy("qra")


class TestQRAWithEverything(StrategyContract):
    """Low fidelity and replicates are options: the contract holds with them too."""

    @pytest.fixture
    def strategy(self):
        return QRAStrategy(low=True, confirm=True)
