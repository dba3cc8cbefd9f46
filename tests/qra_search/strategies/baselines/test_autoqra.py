"""AutoQRA screens at low fidelity, promotes by its model, and refines in trust regions, all derived from the log."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qra_search import search
from qra_search.log.state import StudyState
from qra_search.schemas import Trial
from qra_search.strategies.baselines.autoqra import (
    INITIAL_RADIUS,
    MAX_RADIUS,
    MIN_PAIRS,
    MIN_SCREENING_PAIRS,
    PROMOTED_ORIGIN,
    REFINED_ORIGIN,
    AutoQRAStrategy,
    compute_trust_radius,
    predict_losses,
    sample_trust_region,
)
from qra_search.strategies.baselines.qr_adaptor import WARM_START_ORIGIN, GuidedSteps, derive_importance
from qra_search.testing.scenarios import ToyEvaluator, interpolate_budgets, make_logged_state, make_toy_space

STRATEGY = AutoQRAStrategy(population=6)


def run(evaluations, fidelities, evaluator=ToyEvaluator, **options):
    evaluator = evaluator(make_toy_space(6), fidelities=fidelities)
    budgets = interpolate_budgets(evaluator.space, 0.3, 0.6)
    strategy = AutoQRAStrategy(population=6, **options)
    return search(evaluator, strategy, evaluations=evaluations, memory_budget=budgets, seed=1)


def test_every_generation_is_screened_cheaply_and_a_third_of_it_promoted(rough):
    stage = [
        t
        for t in run(24, (0.25, 1.0)).trials
        if t.proposal.origin in (WARM_START_ORIGIN, "offspring", PROMOTED_ORIGIN)
    ]
    screened = promoted = 0
    for trial in stage:
        if trial.proposal.origin == PROMOTED_ORIGIN:
            promoted += 1
            assert trial.fidelity == 1.0
            assert promoted <= 2 * (screened // 6)
        else:
            assert trial.fidelity == 0.25
            assert promoted == 2 * (screened // 6)
            screened += 1
    assert promoted >= 4
    low = {t.plan for t in stage if t.fidelity < 1.0}
    assert {t.plan for t in stage if t.proposal.origin == PROMOTED_ORIGIN} <= low


class Contrary(ToyEvaluator):
    """The lowest fidelity ranks plans the other way round."""

    def evaluate(self, plan, *, fidelity=1.0, seed=0):
        done = super().evaluate(plan, fidelity=fidelity, seed=seed)
        return done if fidelity == 1.0 else replace(done, loss=-done.loss)


def test_screening_ends_once_it_was_seen_to_mislead(rough):
    trials = run(22, (0.25, 1.0), Contrary, evolution=1.0).trials
    last = max(t.id for t in trials if t.fidelity < 1.0)
    low = {t.plan for t in trials if t.fidelity < 1.0}
    assert 0 < len({t.plan for t in trials[:last] if t.fidelity == 1.0} & low) < MIN_SCREENING_PAIRS
    assert sum(t.fidelity == 1.0 for t in trials[last:]) > 6
    honest = run(30, (0.25, 1.0), evolution=1.0).trials
    assert sum(t.fidelity < 1.0 for t in honest) > 2 * sum(t.fidelity < 1.0 for t in trials)


def test_the_best_plans_are_promoted_and_none_of_them_twice():
    evaluator = ToyEvaluator(make_toy_space(6), fidelities=(0.25, 1.0))
    state = make_logged_state(
        evaluator, 6, writer=STRATEGY, budgets=interpolate_budgets(evaluator.space, 0.5)
    )
    proposals = STRATEGY.propose(state, 3)
    assert [p.origin for p in proposals] == [PROMOTED_ORIGIN, PROMOTED_ORIGIN, "offspring"]
    assert proposals[0].plan == min(state.trials, key=lambda t: t.loss).plan
    running = replace(state, trials=(*state.trials, Trial(6, proposals[0])))
    assert STRATEGY.propose(running, 1) == proposals[1:2]


def screened_state(pairs: int) -> StudyState:
    """Twenty plans screened at a quarter of the fidelity, of which some were evaluated in full too."""
    evaluator = ToyEvaluator(make_toy_space(6), fidelities=(0.25, 1.0))
    state = replace(make_logged_state(evaluator, 20), fidelities=(0.25, 1.0))
    low = [
        replace(
            t,
            proposal=replace(t.proposal, fidelity=0.25),
            evaluation=evaluator.evaluate(t.plan, fidelity=0.25),
        )
        for t in state.trials
    ]
    full = [replace(t, id=20 + i) for i, t in enumerate(state.trials[:pairs])]
    return replace(state, trials=(*low, *full))


def predict(state: StudyState):
    """Predicted, cheap and true losses of the plans that were screened alone."""
    predicted = predict_losses(
        state, GuidedSteps(state.space, derive_importance(state.space, state.sensitivities))
    )
    full = {t.plan: t.loss for t in state.full}
    assert all(predicted[plan] == loss for plan, loss in full.items())
    cheap = {t.plan: t.loss for t in state.trials if t.fidelity < 1.0}
    quiet = ToyEvaluator(state.space, noise=0.0)
    new = [plan for plan in cheap if plan not in full]
    gap = np.mean([full[plan] - cheap[plan] for plan in full])
    return np.array([(predicted[p], cheap[p], quiet.evaluate(p).loss) for p in new]).T, gap


def test_before_the_model_the_cheap_loss_is_moved_by_the_mean_gap():
    (predicted, cheap, _), gap = predict(screened_state(pairs=3))
    assert predicted == pytest.approx(cheap + gap)


def test_the_model_learns_the_full_loss_from_the_pairs():
    (predicted, cheap, truth), _ = predict(screened_state(pairs=MIN_PAIRS + 6))
    assert np.abs(predicted - truth).mean() < 0.5 * np.abs(cheap - truth).mean()


def test_with_one_fidelity_all_is_evaluated_in_full_and_refined_in_trust_regions(rough):
    result = run(26, (1.0,), evolution=0.4)
    assert {t.fidelity for t in result.trials} == {1.0}
    origins = [t.proposal.origin for t in result.trials]
    assert origins.count(WARM_START_ORIGIN) == 6 and PROMOTED_ORIGIN not in origins
    refined = [t for t in result.trials if t.proposal.origin.startswith(REFINED_ORIGIN)]
    assert len(refined) > 10
    assert {int(t.proposal.origin.split()[-1]) for t in refined} == set(result.memory_budgets)
    for trial in refined:
        assert result.space.memory_bytes(trial.plan) <= int(trial.proposal.origin.split()[-1])


@pytest.mark.parametrize(
    ("losses", "radius"),
    [
        ([], INITIAL_RADIUS),
        ([1.9, 1.8], 2 * INITIAL_RADIUS),
        ([1.9, 1.8, 1.7, 1.6, 1.5, 1.4], MAX_RADIUS),
        ([2.5, 2.5, 2.5], INITIAL_RADIUS // 2),
        ([2.5, 2.5, 1.9, 2.5, 2.5], INITIAL_RADIUS),
        ([2.5] * 12, 1),
    ],
)
def test_the_radius_of_a_budget_doubles_after_its_successes_and_halves_after_its_failures(losses, radius):
    evaluator = ToyEvaluator(make_toy_space(4))
    budget = evaluator.space.memory.maximum
    state = make_logged_state(evaluator, len(losses) + 1, budgets=(budget,))
    origins = ["random", *[f"{REFINED_ORIGIN} {budget}"] * len(losses)]
    trials = tuple(
        replace(t, proposal=replace(t.proposal, origin=origin), evaluation=replace(t.evaluation, loss=loss))
        for t, origin, loss in zip(state.trials, origins, [2.0, *losses], strict=True)
    )
    state = replace(state, trials=trials)
    assert (
        compute_trust_radius(state, budget) == radius
        and compute_trust_radius(state, budget - 1) == INITIAL_RADIUS
    )


def test_a_trust_region_lies_within_its_radius_and_budget():
    space = make_toy_space(8)
    steps, rng = GuidedSteps(space, np.ones((2, 8))), np.random.default_rng(0)
    budget = interpolate_budgets(space, 0.5)[0]
    center = steps.repair(steps.sample(rng), budget, rng)
    region = sample_trust_region(steps, center, 5, budget, rng)
    distance = np.abs(region - center).sum((1, 2))
    assert 2 < distance.max() <= 5
    assert (space.memory.bytes(region[distance > 2]) <= budget).all()
