"""How a search stands while it runs."""

from __future__ import annotations

from dataclasses import replace

from qra_search import search
from qra_search.report.progress import BestSoFar
from qra_search.testing.scenarios import ToyEvaluator, toy_space


def test_a_uniform_plan_is_the_rival_whoever_proposed_it_and_no_other_plan_is() -> None:
    space = toy_space(3, table=True)
    trials = search(ToyEvaluator(space), strategy="random", evaluations=8).trials
    uniform = [t for t in trials if space.uniform_choice(t.plan) is not None]
    assert 0 < len(uniform) < len(trials)
    standing = BestSoFar((space.memory.maximum,), 8, space=space)
    for trial in trials:
        other = "uniform" if trial not in uniform else "someone"
        standing.add(replace(trial, proposal=replace(trial.proposal, origin=other)))
    found = standing.best(space.memory.maximum, uniform=True)
    assert found is not None and found[1] == min(t.loss for t in uniform)
