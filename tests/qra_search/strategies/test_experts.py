"""A mixture of experts with a choice for each of them: thousands of groups, and no matrix of groups by groups."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import pytest

from qra_search.allocate.solve import solve
from qra_search.log.state import StudyState
from qra_search.schemas import Proposal, Trial
from qra_search.strategies.qra import QRAStrategy

sys.path.append(str(Path(__file__).parents[3] / "benchmarks" / "strategies"))
from experts import expert_landscape  # noqa: E402


@pytest.fixture(scope="module")
def state():
    """Qwen3-30B-A3B's 6,336 groups, one budget, and ten uniform plans evaluated."""
    landscape = expert_landscape()
    space = landscape.space
    plans = space.uniform_plans()
    trials = tuple(Trial(i, Proposal(p), "done", landscape.evaluate(p)) for i, p in enumerate(plans[:10]))
    return StudyState(space, trials, landscape.sensitivities(), (space.memory_bytes(plans[7]) + 10**8,))


def test_a_proposal_for_every_expert_fits_and_takes_no_matrix_of_groups_by_groups(state):
    groups = len(state.space)
    assert groups == 48 * (128 + 4)
    tracemalloc.start()
    try:
        (proposal,) = QRAStrategy().propose(state, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * groups**2 / 2
    assert proposal.plan == solve(state.space, state.sensitivities, state.largest_budget).plan
