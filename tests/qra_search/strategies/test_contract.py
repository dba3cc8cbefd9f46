"""Every installed strategy keeps the public contract."""

from __future__ import annotations

import pytest

from qra_search import plugins
from qra_search.strategies import Strategy, make_strategy
from qra_search.testing import StrategyContract

SPECS = [name for name in plugins.names("strategies") if name != "optuna"] + ["optuna:tpe", "optuna:random"]
FINITE = ("uniform",)


class TestInstalledStrategies(StrategyContract):
    @pytest.fixture(params=[s for s in SPECS if s not in FINITE])
    def strategy(self, request) -> Strategy:
        if request.param.startswith("optuna"):
            pytest.importorskip("optuna", reason="the optional extra optuna is not installed")
        return make_strategy(request.param)


class TestStrategiesWithFewPlans(StrategyContract):
    finite = True

    @pytest.fixture(params=FINITE)
    def strategy(self, request) -> Strategy:
        return make_strategy(request.param)
