"""Every installed strategy keeps the public contract, and so does the one that docs/add-a-strategy.md prints."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

import pytest

from qra_search import plugins
from qra_search.strategies import Strategy, make_strategy
from qra_search.testing import StrategyContract
from qra_search.testing.contracts import assert_another_process_proposes_the_same
from qra_search.testing.scenarios import scenario

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


GUIDE = Path(__file__).parents[3] / "docs" / "add-a-strategy.md"
MODULE = "printed_climber"


def load_printed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The strategy of a class that the guide prints."""
    printed = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
    (folder / f"{MODULE}.py").write_text(next(code for code in printed if f"class {name}" in code))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return getattr(importlib.import_module(MODULE), name)()


@pytest.mark.parametrize("study", ["an empty log", "no sensitivities", "two fidelities and an empty log"])
def test_the_strategy_on_top_of_the_posterior_table_works_from_the_first_proposal_on(
    study, tmp_path, monkeypatch
):
    strategy, state = load_printed("Greedy", tmp_path, monkeypatch), scenario(study)
    proposals = strategy.propose(state, 2)
    assert len(proposals) == 2 and all(
        state.space.memory_bytes(p.plan) <= state.largest_budget for p in proposals
    )
    assert strategy.propose(state, 0) == []


class TestClimber(StrategyContract):
    @pytest.fixture
    def strategy(self, tmp_path_factory, monkeypatch):
        return load_printed("Climber", tmp_path_factory.mktemp("package"), monkeypatch)
