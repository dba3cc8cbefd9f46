"""AutoQRA screens at low fidelity, promotes by its model, and refines in trust regions, all told from the log."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qra_search import search
from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.space.steps import Steps
from qra_search.strategies.baselines.autoqra import (
    EVOLVED,
    FEWEST_PAIRS,
    MOST_RADIUS,
    PROMOTED,
    RADIUS,
    REFINED,
    AutoQRAStrategy,
    Scores,
    trust_radius,
    trust_region,
)
from qra_search.strategies.baselines.papers import WARM_START, measure_importance
from qra_search.surrogates.promotion import MIN_PAIRS
from qra_search.testing.scenarios import ToyEvaluator, budgets_at, logged_state, toy_space


def run(evaluations, fidelities, **options):
    evaluator = ToyEvaluator(toy_space(6), fidelities=fidelities)
    budgets = budgets_at(evaluator.space, 0.3, 0.6)
    strategy = AutoQRAStrategy(population=6, **options)
    return search(evaluator, strategy, evaluations=evaluations, memory_budget=budgets, seed=1)


def test_every_generation_is_screened_cheaply_and_a_third_of_it_promoted(rough):
    result = run(24, (0.25, 1.0))
    stage = [t for t in result.trials if t.proposal.origin in (WARM_START, EVOLVED, PROMOTED)]
    screened = promoted = 0
    for trial in stage:
        if trial.proposal.origin == PROMOTED:
            promoted += 1
            assert trial.fidelity == 1.0
            assert promoted <= 2 * (screened // 6)
        else:
            assert trial.fidelity == 0.25
            assert promoted == 2 * (screened // 6)
            screened += 1
    assert promoted >= 4
    low = {t.plan for t in stage if t.fidelity < 1.0}
    assert {t.plan for t in stage if t.proposal.origin == PROMOTED} <= low


class Contrary(ToyEvaluator):
    """The lowest fidelity ranks plans the other way round."""

    def evaluate(self, plan, *, fidelity=1.0, seed=0):
        done = super().evaluate(plan, fidelity=fidelity, seed=seed)
        return done if fidelity == 1.0 else replace(done, loss=-done.loss)


def test_screening_ends_once_it_was_seen_to_mislead(rough):
    evaluator = Contrary(toy_space(6), fidelities=(0.25, 1.0))
    budgets = budgets_at(evaluator.space, 0.3, 0.6)
    strategy = AutoQRAStrategy(population=6, evolution=1.0)
    trials = search(evaluator, strategy, evaluations=22, memory_budget=budgets, seed=1).trials
    last = max(t.id for t in trials if t.fidelity < 1.0)
    low = {t.plan for t in trials if t.fidelity < 1.0}
    assert 0 < len({t.plan for t in trials[:last] if t.fidelity == 1.0} & low) < FEWEST_PAIRS
    assert sum(t.fidelity == 1.0 for t in trials[last:]) > 6
    honest = search(ToyEvaluator(toy_space(6), fidelities=(0.25, 1.0)), strategy, evaluations=30,
                    memory_budget=budgets, seed=1).trials  # fmt: skip
    assert sum(t.fidelity < 1.0 for t in honest) > 2 * sum(t.fidelity < 1.0 for t in trials)


def test_the_promoted_plan_is_the_one_with_the_lowest_predicted_loss_that_fits():
    evaluator = ToyEvaluator(toy_space(6), fidelities=(0.25, 1.0))
    strategy = AutoQRAStrategy(population=6)
    state = logged_state(evaluator, 6, writer=strategy, budgets=budgets_at(evaluator.space, 0.5))
    proposal = strategy.propose(state, 1)[0]
    assert proposal.origin == PROMOTED
    assert proposal.plan == min(state.trials, key=lambda t: t.loss).plan


def test_before_the_model_the_cheap_loss_is_moved_by_the_mean_gap():
    state = screened_state(pairs=3)
    scores = Scores(state, measure_importance(state.space, state.sensitivities))
    low = {t.plan: t.loss for t in state.trials if t.fidelity < 1.0}
    gap = np.mean([scores.full[k] - low[k] for k in scores.full])
    rows = state.space.encode_many(scores.cheap)
    assert scores.predict(rows) == pytest.approx([low[p] + gap for p in scores.cheap])


def test_the_model_learns_the_full_loss_from_the_pairs():
    state = screened_state(pairs=MIN_PAIRS + 6)
    scores = Scores(state, measure_importance(state.space, state.sensitivities))
    quiet = ToyEvaluator(state.space, noise=0.0)
    truth = np.array([quiet.evaluate(p).loss for p in scores.cheap])
    predicted = scores.predict(state.space.encode_many(scores.cheap))
    cheap = np.array([quiet.evaluate(p, fidelity=0.25).loss for p in scores.cheap])
    new = np.array([p not in scores.full for p in scores.cheap])
    assert np.abs(predicted - truth)[new].mean() < 0.5 * np.abs(cheap - truth)[new].mean()


def screened_state(pairs: int) -> StudyState:
    """Twenty plans screened at a quarter of the fidelity, of which some were evaluated in full too."""
    evaluator = ToyEvaluator(toy_space(6), fidelities=(0.25, 1.0))
    state = logged_state(evaluator, 20)
    low = [
        replace(t, proposal=replace(t.proposal, fidelity=0.25), evaluation=evaluator.evaluate(t.plan, fidelity=0.25))
        for t in state.trials
    ]
    full = [replace(t, id=20 + i) for i, t in enumerate(state.trials[:pairs])]
    return replace(state, trials=(*low, *full))


def test_with_one_fidelity_the_model_picks_which_offspring_is_evaluated(rough):
    result = run(20, (1.0,), evolution=1.0)
    assert {t.fidelity for t in result.trials} == {1.0}
    origins = [t.proposal.origin for t in result.trials]
    assert origins.count(WARM_START) == 6 and origins.count(EVOLVED) > 3 and PROMOTED not in origins
    evaluator = ToyEvaluator(toy_space(6))
    state = logged_state(evaluator, 30)
    scores = Scores(state, measure_importance(state.space, state.sensitivities))
    rng = np.random.default_rng(0)
    rows = np.array([Steps(state.space).random(rng) for _ in range(8)])
    assert np.array_equal(scores.best(rows), rows[scores.predict(rows).argmin()])


def test_the_last_stage_refines_in_trust_regions(rough):
    result = run(26, (1.0,), evolution=0.4)
    refined = [t for t in result.trials if t.proposal.origin.startswith(REFINED)]
    assert len(refined) > 10
    budgets = {int(t.proposal.origin.split()[-1]) for t in refined}
    assert budgets == set(result.memory_budgets)
    for trial in refined:
        assert result.space.memory_bytes(trial.plan) <= int(trial.proposal.origin.split()[-1])


def log_of(losses, budget):
    """A state whose log holds refinements under one budget with these losses, after a first trial of loss 2."""
    evaluator = ToyEvaluator(toy_space(4))
    state = logged_state(evaluator, len(losses) + 1, budgets=(budget(evaluator.space),))
    trials = []
    for i, loss in enumerate([2.0, *losses]):
        done = state.trials[i]
        origin = "random" if i == 0 else f"{REFINED} {state.memory_budgets[0]}"
        trials.append(
            replace(
                done, proposal=replace(done.proposal, origin=origin), evaluation=replace(done.evaluation, loss=loss)
            )
        )
    return replace(state, trials=tuple(trials))


@pytest.mark.parametrize(
    ("losses", "radius"),
    [
        ([], RADIUS),
        ([1.9, 1.8], 2 * RADIUS),
        ([1.9, 1.8, 1.7, 1.6, 1.5, 1.4], MOST_RADIUS),
        ([2.5, 2.5, 2.5], RADIUS // 2),
        ([2.5, 2.5, 1.9, 2.5, 2.5], RADIUS),
        ([2.5] * 12, 1),
    ],
)
def test_the_radius_doubles_after_successes_and_halves_after_failures(losses, radius):
    state = log_of(losses, lambda space: space.memory.maximum)
    assert trust_radius(state, state.memory_budgets[0]) == radius


def test_another_budgets_refinements_leave_the_radius_alone():
    state = log_of([1.9, 1.8], lambda space: space.memory.maximum)
    assert trust_radius(state, state.memory_budgets[0] - 1) == RADIUS


def test_a_trust_region_lies_within_its_radius_and_budget():
    space = toy_space(8)
    steps, rng = Steps(space), np.random.default_rng(0)
    budget = budgets_at(space, 0.5)[0]
    center = steps.repair(steps.random(rng), budget, rng)
    region = trust_region(steps, center, 5, budget, rng)
    distance = np.abs(region - center).sum((1, 2))
    assert distance.max() <= 5 and distance.max() > 2
    far = region[distance > 2]
    assert (space.memory.bytes(far) <= budget).all()


def test_pending_promotions_are_not_promoted_twice():
    evaluator = ToyEvaluator(toy_space(6), fidelities=(0.25, 1.0))
    strategy = AutoQRAStrategy(population=6)
    state = logged_state(evaluator, 6, writer=strategy, budgets=budgets_at(evaluator.space, 0.5))
    proposals = strategy.propose(state, 3)
    assert [p.origin for p in proposals] == [PROMOTED, PROMOTED, EVOLVED]
    running = replace(state, trials=(*state.trials, Trial(6, proposals[0])))
    assert strategy.propose(running, 1) == proposals[1:2]
    assert isinstance(proposals[0], Proposal)


def test_a_share_outside_zero_to_one_is_refused():
    with pytest.raises(ValueError, match="evolution is a share"):
        AutoQRAStrategy(evolution=-0.1)
