"""A search ends well where there is nothing to compare with, or nothing to be a share of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qra_search import Plan, search
from qra_search.app.report.finding import summarize_run
from qra_search.errors import BadInput
from qra_search.schemas import Evaluation, Group, Linear
from qra_search.space.budgets import resolve_budgets
from qra_search.space.space import SearchSpace
from qra_search.study.study import list_initial_plans
from qra_search.testing.scenarios import ToyEvaluator, make_toy_space


class AllRight(ToyEvaluator):
    """As by a task's own measure: the loss is zero once no group has fewer than 4 bits."""

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        loss = 0.0 if min(plan.bits) >= 4 else 0.25
        return Evaluation(loss=loss, memory_bytes=self.space.memory_bytes(plan))


def test_a_uniform_plan_without_any_loss_is_beaten_by_no_share():
    result = search(AllRight(make_toy_space()), strategy="random", evaluations=8, memory_budget="uniform4r8")
    (comparison,) = result.comparisons
    assert comparison.baseline is not None and comparison.baseline.loss == 0.0
    assert comparison.change is None and "No plan found" in summarize_run(result)


class Accuracy(ToyEvaluator):
    """Lowers what is negative."""

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        return Evaluation(
            loss=-sum(plan.bits) - 0.01 * plan.ranks[0], memory_bytes=self.space.memory_bytes(plan)
        )


def test_a_negative_loss_that_is_lower_is_a_gain():
    result = search(
        Accuracy(make_toy_space()), strategy="additive", evaluations=12, memory_budget="uniform3r8"
    )
    (comparison,) = result.comparisons
    assert comparison.change is not None and comparison.baseline is not None and comparison.change.is_lower
    lower = comparison.baseline.loss - comparison.chosen.loss
    assert comparison.change.share == pytest.approx(-lower / abs(comparison.baseline.loss))


def test_a_search_without_a_budget_says_what_it_found():
    for evaluations in (2, 4):
        result = search(ToyEvaluator(make_toy_space()), evaluations=evaluations)
        assert result.candidates and "No plan has been evaluated" not in summarize_run(result)


def test_an_embedding_that_comes_first_takes_no_part_in_what_is_uniform():
    linears = [Linear(name=name, out_features=64, in_features=64) for name in ("e", "a", "b")]
    table = Group(name="e", linears=linears[:1], bits=(8, 16), ranks=(0,), is_embedding=True)
    groups = [Group(name=linear.name, linears=[linear]) for linear in linears[1:]]
    orders = [
        SearchSpace(groups=some, bits=(2, 3, 8, 16), ranks=(0, 4, 16))
        for some in ([table, *groups], [*groups, table])
    ]
    for budgets in ([], [orders[0].memory.maximum]):
        first, last = (
            [space.uniform_choice(plan) for plan in list_initial_plans(space, budgets)] for space in orders
        )
        assert first == last and first


def test_a_space_whose_groups_share_no_rank_has_no_uniform_plan():
    linear = Linear(name="q", out_features=64, in_features=64)
    head = Group(name="head", linears=(replace(linear, name="h"),), ranks=(0,))
    space = SearchSpace(groups=[Group(name="q", linears=(linear,), ranks=(4, 8)), head], ranks=(0, 4, 8))
    assert space.uniform_ranks == () and list_initial_plans(space, ()) == []
    with pytest.raises(BadInput, match="no rank is allowed for every group. Give the budget in bytes"):
        resolve_budgets(space, "75%")
