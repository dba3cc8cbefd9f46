"""QR-Adaptor is its paper's three phases, told from the log, with none of the public code's defects."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from qra_search import search
from qra_search.space.steps import Steps
from qra_search.strategies.baselines.papers import (
    WARM_START,
    atomic_edits,
    best_improvement,
    matern_belief,
    measure_importance,
    warm_start,
)
from qra_search.strategies.baselines.qr_adaptor import OFFSPRING, PROMOTED, REFINED, QRAdaptorStrategy, front_edits
from qra_search.testing.scenarios import ToyEvaluator, budgets_at, logged_state, toy_space


def run(evaluations=40, fidelities=(1.0,), **options):
    evaluator = ToyEvaluator(toy_space(6), fidelities=fidelities)
    budgets = budgets_at(evaluator.space, 0.3, 0.6)
    strategy = QRAdaptorStrategy(population=6, **options)
    return search(evaluator, strategy, evaluations=evaluations, memory_budget=budgets, seed=1), budgets


def test_the_three_phases_follow_each_other(rough):
    result, _ = run()
    origins = [t.proposal.origin for t in result.trials if t.proposal.origin != "uniform"]
    order = [WARM_START, OFFSPRING, REFINED]
    assert [o for o in dict.fromkeys(origins) if o in order] == order
    assert origins[:6] == [WARM_START] * 6
    places = [order.index(o) for o in origins if o in order]
    assert places == sorted(places)
    # Phases I and II spend half of the 40 evaluations, of which the sensitivities took a half.
    assert places.index(2) + 4 == pytest.approx(20, abs=1)


def test_the_first_plan_is_the_sensitivity_informed_one():
    evaluator = ToyEvaluator(toy_space(6))
    budgets = budgets_at(evaluator.space, 0.4)
    state = logged_state(evaluator, 0, budgets=budgets)
    proposal = QRAdaptorStrategy().propose(state, 1)[0]
    expected = warm_start(Steps(state.space), measure_importance(state.space, state.sensitivities), budgets[0])
    assert proposal.plan == state.space.decode(expected)


def test_with_two_fidelities_evolution_is_proxy_tuned_and_refinement_is_full(rough):
    result, budgets = run(evaluations=20, fidelities=(0.25, 1.0))
    by_origin = {o: {t.fidelity for t in result.trials if t.proposal.origin == o} for o in (WARM_START, OFFSPRING)}
    assert by_origin == {WARM_START: {0.25}, OFFSPRING: {0.25}}
    later = [t for t in result.trials if t.proposal.origin in (PROMOTED, REFINED)]
    assert {t.fidelity for t in later} == {1.0}
    promoted = [t for t in result.trials if t.proposal.origin == PROMOTED]
    proxy = [t for t in result.trials if t.fidelity == 0.25]
    for budget, trial in zip(budgets, promoted[: len(budgets)], strict=True):
        fitting = [t for t in proxy if result.space.memory_bytes(t.plan) <= budget]
        assert trial.plan == min(fitting, key=lambda t: t.loss).plan


def test_proxy_and_full_losses_are_never_ranked_together():
    """Full losses that are absurdly good change nothing in the next proxy-tuned generation."""
    evaluator = ToyEvaluator(toy_space(6), fidelities=(0.25, 1.0))
    strategy = QRAdaptorStrategy(population=4)
    state = logged_state(evaluator, 10, writer=strategy, budgets=budgets_at(evaluator.space, 0.5))
    extra = logged_state(evaluator, 2, seed=9, budgets=state.memory_budgets).trials
    lucky = [
        replace(t, id=10 + i, proposal=replace(t.proposal, fidelity=1.0), evaluation=replace(t.evaluation, loss=-5.0))
        for i, t in enumerate(extra)
    ]
    plain = [replace(t, evaluation=replace(t.evaluation, loss=9.0)) for t in lucky]
    first = strategy.propose(replace(state, trials=(*state.trials, *lucky)), 2)
    assert first == strategy.propose(replace(state, trials=(*state.trials, *plain)), 2)


def test_a_plan_enters_the_model_once_and_proxy_losses_are_moved_by_the_gap():
    evaluator = ToyEvaluator(toy_space(4), fidelities=(0.25, 1.0), noise=0.0)
    state = logged_state(evaluator, 8)
    low = [replace(t, proposal=replace(t.proposal, fidelity=0.25)) for t in state.trials]
    low = [replace(t, evaluation=evaluator.evaluate(t.plan, fidelity=0.25)) for t in low]
    both = [replace(t, id=8 + i) for i, t in enumerate(state.trials[:5])]
    belief = matern_belief(replace(state, trials=(*low, *both)), measure_importance(state.space, state.sensitivities))
    assert len(belief.codes) == 8
    gap = np.mean([state.trials[i].loss - low[i].loss for i in range(5)])
    shifted = [low[i].loss + gap for i in range(5, 8)]
    known = dict(
        zip(
            (code.tobytes() for code in belief.codes),
            belief.gp.center + belief.gp.scale * (belief.gp.residual + belief.gp.constant),
            strict=True,
        )
    )
    codes = state.space.encode_many([t.plan for t in low[5:]])
    assert [known[code.tobytes()] for code in codes] == pytest.approx(np.minimum(shifted, belief.ceiling).tolist())


def test_refinement_is_a_matern_gp_with_expected_improvement_over_the_fronts_edits():
    evaluator = ToyEvaluator(toy_space(4))
    state = logged_state(evaluator, 21, budgets=budgets_at(evaluator.space, 0.5))
    belief = matern_belief(state, measure_importance(state.space, state.sensitivities))
    assert belief.gp.kernel == "matern52" and belief.gp.slope == 0.0
    code, budget = best_improvement(state, belief, set(state.seen), front_edits)
    assert budget == state.memory_budgets[0]
    sizes = belief.space.memory.bytes(belief.codes)
    fitting = np.flatnonzero(sizes <= budget)
    edits = front_edits(belief, fitting, budget)
    edits = edits[belief.space.memory.bytes(edits) <= budget]
    edits = edits[[belief.space.decode(e) not in state.seen for e in edits]]
    mean, std = belief.predict(edits)
    level = belief.mean(belief.codes[fitting]).min()
    draws = mean[:, None] + std[:, None] * np.random.default_rng(0).standard_normal(200_000)
    improvement = np.maximum(level - draws, 0.0).mean(1)
    at = int(np.flatnonzero((edits == code).all((1, 2)))[0])
    assert improvement[at] == pytest.approx(improvement.max(), rel=0.02)


def test_atomic_edits_are_steps_of_one_choice_or_of_both_in_one_group():
    steps = Steps(toy_space(3, restricted=True))
    code = steps.random(np.random.default_rng(3))
    edits = atomic_edits(steps, code)
    assert len({edit.tobytes() for edit in edits}) == len(edits)
    for edit in edits:
        changed = edit != code
        assert changed.sum() in (1, 2) and changed.any(0).sum() == 1
        assert (((edit == steps.up(code)) | (edit == steps.down(code)))[changed]).all()
    assert Counter(int((edit != code).sum()) for edit in edits)[1] == len(steps.neighbours(code))


def test_the_budget_binds_and_nothing_is_repeated(rough):
    result, budgets = run()
    assert max(result.space.memory_bytes(t.plan) for t in result.trials) <= budgets[1]
    assert len({t.plan for t in result.trials}) == len(result.trials)


def test_a_share_outside_zero_to_one_is_refused():
    with pytest.raises(ValueError, match="must be from 0 to 1, got 1.5"):
        QRAdaptorStrategy(evolution=1.5)
