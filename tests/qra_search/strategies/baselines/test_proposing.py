"""Budgets take turns, proposals are new, and optimizers of other packages see the places of every choice."""

from __future__ import annotations

import importlib
import logging
import warnings
from dataclasses import replace

import numpy as np
import pytest

from qra_search.log.trial import Proposal
from qra_search.strategies.baselines.proposing import (
    Places,
    budget_in_turn,
    fresh_plans,
    one_by_one,
    optional_package,
    quiet,
)
from qra_search.strategies.plan_codec import PlanCodec
from qra_search.testing.scenarios import ToyEvaluator, logged_state, scenario, toy_space


def test_budgets_take_turns_by_the_number_of_the_proposal():
    state = scenario("a log that another strategy wrote")
    first, second = state.memory_budgets
    assert [budget_in_turn(state, k) for k in range(3)] == [first, second, first]
    assert budget_in_turn(replace(state, memory_budgets=()), 5) == state.space.memory.maximum


def test_fresh_plans_draws_again_then_falls_back_on_random_plans():
    state = scenario("a log that another strategy wrote")
    known = PlanCodec(state.space).encode([state.trials[0].plan])[0]
    proposals = fresh_plans(state, 2, lambda offset, rng: (known, "stubborn"))
    assert [p.origin for p in proposals] == ["random", "random"]
    assert not {p.plan.key for p in proposals} & state.seen


def test_fresh_plans_ends_where_nothing_is_left():
    state = logged_state(ToyEvaluator(toy_space(1, bits=(2,), ranks=(4, 8))), 2)
    row = PlanCodec(state.space).encode([state.trials[0].plan])[0]
    assert fresh_plans(state, 3, lambda offset, rng: (row, "x")) == []


def test_one_by_one_shows_each_ask_the_earlier_proposals_as_running():
    state = scenario("one trial")
    asked = []

    def ask(current):
        asked.append(current)
        return None if len(asked) == 3 else Proposal(current.trials[0].plan, seed=100 + len(asked))

    proposals = one_by_one(state, 5, ask)
    assert [p.seed for p in proposals] == [101, 102]
    assert [len(s.pending) for s in asked] == [0, 1, 2]
    assert asked[2].trials[-1].proposal == proposals[1]
    with pytest.raises(ValueError, match="has no loss"):
        _ = asked[2].trials[-1].loss


def test_places_count_what_a_group_may_take():
    space = toy_space(4, restricted=True)
    codec = PlanCodec(space)
    places, row = Places(codec), codec.random(np.random.default_rng(0))
    choices = [len(g.bits or space.bits) for g in space.groups] + [len(g.ranks or space.ranks) for g in space.groups]
    assert places.counts.tolist() == choices
    point = places.of(row[None])[0]
    assert (point < places.counts).all() and np.array_equal(places.row(point), row)
    lowest = codec.decode(places.row(np.zeros(len(places.free), int)))
    assert list(lowest.bits) == [(g.bits or space.bits)[0] for g in space.groups]


def test_variables_without_a_choice_have_no_place():
    codec = PlanCodec(toy_space(3, bits=(4,)))
    places = Places(codec)
    assert places.free.tolist() == [3, 4, 5]
    assert places.row(np.array([0, 1, 2])).tolist() == [0, 0, 0, 0, 1, 2]


def test_log_and_warnings_are_silent_within_and_as_before_afterwards():
    logging.disable(logging.DEBUG)
    try:
        with pytest.raises(ZeroDivisionError), quiet(), warnings.catch_warnings():
            warnings.warn("unheard", stacklevel=1)
            assert not logging.getLogger("of an optimizer").isEnabledFor(logging.WARNING)
            raise ZeroDivisionError
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(logging.NOTSET)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'qra-toolkit\[optuna\]'"):
        optional_package("optuna", "its optimizers")
