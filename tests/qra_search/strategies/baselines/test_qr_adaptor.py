"""QR-Adaptor is its paper's three phases, derived from the log, with none of the public code's defects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qra_search import search
from qra_search.strategies.baselines.qr_adaptor import (
    PROMOTED,
    REFINED,
    WARM_START,
    GuidedSteps,
    QRAdaptorStrategy,
    fit_matern,
    measure_importance,
)
from qra_search.testing.scenarios import ToyEvaluator, interpolate_budgets, make_logged_state, make_toy_space


def run(evaluations=40, fidelities=(1.0,)):
    evaluator = ToyEvaluator(make_toy_space(6), fidelities=fidelities)
    budgets = interpolate_budgets(evaluator.space, 0.3, 0.6)
    strategy = QRAdaptorStrategy(population=6)
    return search(evaluator, strategy, evaluations=evaluations, memory_budget=budgets, seed=1), budgets


def guide(state) -> GuidedSteps:
    return GuidedSteps(state.space, measure_importance(state.space, state.sensitivities))


def phase(trial) -> str:
    return REFINED if trial.proposal.origin.startswith(REFINED) else trial.proposal.origin


def test_the_three_phases_follow_each_other_within_the_budget_and_without_repeats(rough):
    result, budgets = run()
    phases = [phase(t) for t in result.trials if t.proposal.origin != "uniform"]
    order = [WARM_START, "offspring", REFINED]
    assert [o for o in dict.fromkeys(phases) if o in order] == order
    assert phases[:6] == [WARM_START] * 6
    places = [order.index(o) for o in phases if o in order]
    assert places == sorted(places)
    # Phases I and II spend half of the 40 evaluations, of which the sensitivities took a half.
    assert places.index(2) + 4 == pytest.approx(20, abs=1)
    assert max(result.space.memory_bytes(t.plan) for t in result.trials) <= budgets[1]
    assert len({t.plan for t in result.trials}) == len(result.trials)


def test_with_two_fidelities_evolution_is_proxy_tuned_and_refinement_is_full(rough):
    result, budgets = run(evaluations=20, fidelities=(0.25, 1.0))
    fidelities = {p: {t.fidelity for t in result.trials if phase(t) == p} for p in map(phase, result.trials)}
    assert fidelities == {
        "uniform": {1.0},
        WARM_START: {0.25},
        "offspring": {0.25},
        PROMOTED: {1.0},
        REFINED: {1.0},
    }
    promoted = [t for t in result.trials if t.proposal.origin == PROMOTED]
    proxy = [t for t in result.trials if t.fidelity == 0.25]
    for budget, trial in zip(budgets, promoted[: len(budgets)], strict=True):
        fitting = [t for t in proxy if result.space.memory_bytes(t.plan) <= budget]
        assert trial.plan == min(fitting, key=lambda t: t.loss).plan


def test_proxy_and_full_losses_are_never_ranked_together():
    """Full losses that are absurdly good change nothing in the next proxy-tuned generation."""
    evaluator = ToyEvaluator(make_toy_space(6), fidelities=(0.25, 1.0))
    strategy = QRAdaptorStrategy(population=4)
    state = make_logged_state(
        evaluator, 10, writer=strategy, budgets=interpolate_budgets(evaluator.space, 0.5)
    )
    extra = make_logged_state(evaluator, 2, seed=9, budgets=state.memory_budgets).trials
    lucky, plain = (
        [replace(t, id=10 + i, evaluation=replace(t.evaluation, loss=loss)) for i, t in enumerate(extra)]
        for loss in (-5.0, 9.0)
    )
    first = strategy.propose(replace(state, trials=(*state.trials, *lucky)), 2)
    assert first == strategy.propose(replace(state, trials=(*state.trials, *plain)), 2)


def test_a_plan_enters_the_model_once_and_proxy_losses_are_moved_by_the_gap():
    evaluator = ToyEvaluator(make_toy_space(4), fidelities=(0.25, 1.0), noise=0.0)
    state = make_logged_state(evaluator, 8)
    low = [replace(t, proposal=replace(t.proposal, fidelity=0.25)) for t in state.trials]
    low = [replace(t, evaluation=evaluator.evaluate(t.plan, fidelity=0.25)) for t in low]
    both = [replace(t, id=8 + i) for i, t in enumerate(state.trials[:5])]
    gap = np.mean([state.trials[i].loss - low[i].loss for i in range(5)])
    moved = [replace(t, evaluation=replace(t.evaluation, loss=t.loss + gap, fidelity=1.0)) for t in low[5:]]
    moved = [replace(t, proposal=replace(t.proposal, fidelity=1.0)) for t in moved]
    mixed, full = (replace(state, trials=(*trials,)) for trials in ((*low, *both), (*both, *moved)))
    found, expected = fit_matern(mixed, guide(state)), fit_matern(full, guide(state))
    assert np.array_equal(found.codes, expected.codes) and len(found.codes) == 8
    np.testing.assert_allclose(found.predict(found.codes), expected.predict(found.codes), rtol=1e-6)


def test_refinement_takes_the_edit_of_the_front_with_the_largest_expected_improvement():
    evaluator = ToyEvaluator(make_toy_space(4))
    state = make_logged_state(evaluator, 21, budgets=interpolate_budgets(evaluator.space, 0.5))
    steps, strategy, (budget,) = guide(state), QRAdaptorStrategy(), state.memory_budgets
    model = fit_matern(state, steps)
    fitting = replace(model, codes=model.codes[state.memory.bytes(model.codes) <= budget])
    edits = strategy.list_candidates(state, steps, fitting, budget)
    edits = edits[state.memory.bytes(edits) <= budget]
    edits = edits[[state.space.decode(e) not in state.seen for e in edits]]
    mean, std = model.predict(edits)
    draws = mean[:, None] + std[:, None] * np.random.default_rng(0).standard_normal(200_000)
    improvement = np.maximum(model.predict(fitting.codes)[0].min() - draws, 0.0).mean(1)
    code = state.space.encode(strategy.refine(state, steps, REFINED).plan)
    at = int(np.flatnonzero((edits == code).all((1, 2)))[0])
    assert improvement[at] == pytest.approx(improvement.max(), rel=0.02)
