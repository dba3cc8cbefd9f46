"""Nevergrad's optimizers, made anew from the log, are told what fits the budget in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("nevergrad", reason="the optional extra nevergrad is not installed")

from qra_search.space import Plan  # noqa: E402
from qra_search.strategies import make_strategy  # noqa: E402
from qra_search.strategies.baselines.nevergrad import ASKED, NevergradStrategy  # noqa: E402
from qra_search.study.study import check_proposals  # noqa: E402
from qra_search.testing.scenarios import ToyEvaluator, budgets_of, logged_state, scenario, toy_space  # noqa: E402


class Repeating(NevergradStrategy):
    """Asks for the same point again and again, and notes what it was told."""

    name = "repeating"

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[np.ndarray, np.ndarray]] = []
        self.asked = 0

    def suggestions(self, counts, points, losses, seed, evaluations) -> Iterator[np.ndarray]:
        self.told.append((points, losses))
        while True:
            self.asked += 1
            yield np.zeros(len(counts), int)


def test_it_is_told_the_mean_loss_of_every_plan_that_fits_the_budget_in_turn():
    state = logged_state(ToyEvaluator(failing=0.2), 20, budgets=scenario("failed trials").memory_budgets, pending=1)
    again = replace(state.full[0], id=len(state.trials), evaluation=replace(state.full[0].evaluation, loss=9.0))
    state = replace(state, trials=(*state.trials, again))
    strategy = Repeating()
    strategy.propose(state, 2)
    in_turn = [state.budgets[(len(state.trials) + offset) % len(state.budgets)] for offset in (0, 1)]
    assert sorted(in_turn) == sorted(state.budgets)
    for budget, (points, told) in zip(in_turn, strategy.told, strict=True):
        losses: dict[Plan, list[float]] = {}
        for trial in state.trials:
            if trial.done and state.space.memory_bytes(trial.plan) <= budget:
                losses.setdefault(trial.plan, []).append(trial.loss)
        assert told == pytest.approx([np.mean(v) for v in losses.values()])
        assert len(points) == len(losses)
        # Every group of the toy has all choices, so that a place is a level.
        b, r = state.space.encode_many(losses)
        assert points.tolist() == np.concatenate([b, r], axis=1).tolist()


def test_one_that_asks_for_known_plans_makes_way_for_a_random_one():
    state = scenario("a log that another strategy wrote")
    strategy = Repeating()
    first, second = strategy.propose(state, 2)
    assert (first.origin, second.origin) == ("repeating", "random")
    assert strategy.asked <= 1 + ASKED


def test_it_proposes_lawfully_and_learns_from_the_log():
    evaluator = ToyEvaluator(toy_space(3))
    state = logged_state(evaluator, 12, budgets=budgets_of(evaluator.space, 1.0))
    strategy = make_strategy("nevergrad")
    proposals = strategy.propose(state, 3)
    check_proposals(proposals, state)
    assert {p.origin for p in proposals} == {"nevergrad"}
    shuffled = tuple(
        replace(t, evaluation=replace(t.evaluation, loss=u.loss))
        for t, u in zip(state.trials, reversed(state.trials), strict=True)
    )
    assert strategy.propose(replace(state, trials=shuffled), 3) != proposals


def test_nevergrad_takes_its_optimizer_by_name():
    state = scenario("a log that another strategy wrote")
    check_proposals(make_strategy("nevergrad:DE").propose(state, 3), state)
    with pytest.raises(ValueError, match="unknown nevergrad optimizer 'NGOtp': did you mean NGOpt"):
        make_strategy("nevergrad:NGOtp")


def test_what_ngopt_chose_goes_on_from_the_best_of_the_log():
    """It starts from the middle of all levels only when it knows nothing, and then changes ever fewer variables."""
    points = np.random.default_rng(0).integers(0, 4, (200, 40))
    losses = points.sum(1).astype(float)
    suggestions = NevergradStrategy().suggestions(np.full(40, 4), points, losses, 1, 300)
    changed = [(next(suggestions) != points[losses.argmin()]).sum() for _ in range(5)]
    assert max(changed) <= 10


def test_an_optimizer_of_nevergrad_that_cannot_be_rebuilt_says_so():
    state = scenario("a log that another strategy wrote")
    with pytest.raises(ValueError, match="EDA takes only points that it asked for"):
        make_strategy("nevergrad:EDA").propose(state, 1)
