"""QR-Adaptor is its paper's three phases, derived from the log, with none of the public code's defects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_search import Sensitivities, search
from qra_search.space.memory import GroupwiseFormat, Level
from qra_search.strategies.baselines.autoqra import IMPORTANCE_EXPONENT, mutate_by_importance
from qra_search.strategies.baselines.qr_adaptor import (
    EPSILON,
    PROMOTED_ORIGIN,
    REFINED_ORIGIN,
    WARM_START_ORIGIN,
    GuidedSteps,
    QRAdaptorStrategy,
    derive_importance,
    fit_matern,
)
from qra_search.testing.scenarios import ToyEvaluator, interpolate_budgets, make_logged_state, make_toy_space


def run(evaluations=40, fidelities=(1.0,)):
    evaluator = ToyEvaluator(make_toy_space(6), fidelities=fidelities)
    budgets = interpolate_budgets(evaluator.space, 0.3, 0.6)
    strategy = QRAdaptorStrategy(population=6)
    return search(evaluator, strategy, evaluations=evaluations, memory_budget=budgets, seed=1), budgets


def guide(state) -> GuidedSteps:
    return GuidedSteps(state.space, derive_importance(state.space, state.sensitivities))


def phase(trial) -> str:
    return REFINED_ORIGIN if trial.proposal.origin.startswith(REFINED_ORIGIN) else trial.proposal.origin


def test_the_three_phases_follow_each_other_within_the_budget_and_without_repeats(rough):
    result, budgets = run()
    phases = [phase(t) for t in result.trials if t.proposal.origin != "uniform"]
    order = [WARM_START_ORIGIN, "offspring", REFINED_ORIGIN]
    assert [o for o in dict.fromkeys(phases) if o in order] == order
    assert phases[:6] == [WARM_START_ORIGIN] * 6
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
        WARM_START_ORIGIN: {0.25},
        "offspring": {0.25},
        PROMOTED_ORIGIN: {1.0},
        REFINED_ORIGIN: {1.0},
    }
    promoted = [t for t in result.trials if t.proposal.origin == PROMOTED_ORIGIN]
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
    code = state.space.encode(strategy.refine(state, steps, REFINED_ORIGIN).plan)
    at = int(np.flatnonzero((edits == code).all((1, 2)))[0])
    assert improvement[at] == pytest.approx(improvement.max(), rel=0.02)


SPACE = make_toy_space(6)
DAMAGE = np.array([0.1, 0.8, 0.2, 1.6, 0.4, 0.05])
SENSITIVITIES = Sensitivities(DAMAGE[:, None] * 0.25 ** np.arange(4), np.outer(DAMAGE[::-1], [0.1, 0.2, 0.3]))
IMPORTANCE = derive_importance(SPACE, SENSITIVITIES)
STEPS = GuidedSteps(SPACE, IMPORTANCE)
count_bytes = SPACE.memory.bytes


def test_importance_is_damage_at_the_fewest_bits_and_gain_at_the_largest_rank():
    np.testing.assert_allclose(IMPORTANCE, [DAMAGE / 1.6, DAMAGE[::-1] / 1.6])
    assert (derive_importance(SPACE, Sensitivities(np.zeros((6, 4)), np.zeros((6, 3)))) == 1).all()


@given(st.floats(0.0, 1.0))
@settings(deadline=None)
def test_a_warm_start_fits_the_budget_and_gives_more_to_what_matters_more(share):
    budget = interpolate_budgets(SPACE, share)[0]
    bits, ranks = code = STEPS.make_warm_start(budget)
    assert count_bytes(code) <= budget
    assert (np.diff(bits[np.argsort(IMPORTANCE[0])]) >= 0).all()
    assert (np.diff(ranks[np.argsort(IMPORTANCE[1])]) >= 0).all()


def test_a_warm_start_spends_the_budget():
    """Not all 2 bits, as an importance that defaults to zero would give, and not beyond what fits."""
    assert (
        min(count_bytes(STEPS.make_warm_start(b)) / b for b in interpolate_budgets(SPACE, 0.3, 0.6, 1.0))
        > 0.75
    )
    assert STEPS.make_warm_start(SPACE.memory.maximum).tolist() == [[3] * 6, [2] * 6]


def test_a_warm_start_fits_where_the_first_of_two_levels_of_a_width_is_larger():
    levels = tuple(
        Level(name, 4, format=GroupwiseFormat(4, metadata_bits=bits)) for name, bits in (("a", 64), ("b", 8))
    )
    space = make_toy_space(bits=levels)
    steps = GuidedSteps(space, np.ones((2, len(space))))
    assert space.memory.bytes(steps.make_warm_start(space.memory.minimum)) == space.memory.minimum


def test_repair_takes_the_step_with_the_least_importance_a_byte_saved():
    code = STEPS.sample(np.random.default_rng(1))
    repaired = STEPS.repair_by_importance(code, int(count_bytes(code)) - 1)
    price = {}
    for v in range(code.size):
        lower = code.copy()
        lower.flat[v] = STEPS.decrease_choices(code).flat[v]
        saved = int(count_bytes(code) - count_bytes(lower))
        if saved > 0:
            price[v] = (IMPORTANCE.flat[v] + EPSILON) / saved
    assert np.flatnonzero(repaired != code).tolist() == [min(price, key=price.get)]


@given(st.integers(0, 1000), st.floats(0.0, 1.0), st.integers(0, 11))
@settings(deadline=None)
def test_repair_fits_and_keeps_a_variable_while_others_can_pay(seed, share, keep):
    budget = interpolate_budgets(SPACE, share)[0]
    code = STEPS.sample(np.random.default_rng(seed))
    repaired = STEPS.repair_by_importance(code, budget, keep=keep)
    assert count_bytes(repaired) <= budget
    assert repaired.flat[keep] == code.flat[keep] or (np.delete(repaired, keep) == 0).all()


def test_coverage_is_the_importance_weighted_mean_place():
    codes = np.zeros((3, 2, 6), int)
    codes[1] = [[3] * 6, [2] * 6]
    codes[2, 0, 3] = 3
    expected = [[0.0, 0.0], [1.0, 1.0], [DAMAGE[3] / DAMAGE.sum(), 0.0]]
    assert STEPS.compute_coverage(codes) == pytest.approx(np.array(expected))


def test_atomic_edits_are_steps_of_one_choice_or_of_both_in_one_group():
    steps = GuidedSteps(make_toy_space(3, restricted=True), np.ones((2, 3)))
    code = steps.sample(np.random.default_rng(3))
    edits = steps.list_atomic_edits(code)
    assert len({edit.tobytes() for edit in edits}) == len(edits)
    for edit in edits:
        changed = edit != code
        assert changed.sum() in (1, 2) and changed.any(0).sum() == 1
        assert (
            ((edit == steps.increase_choices(code)) | (edit == steps.decrease_choices(code)))[changed]
        ).all()
    assert sum((edit != code).sum() == 1 for edit in edits) == len(steps.list_neighbours(code))


def mutate_often(coupled: float, budget: int, count: int = 400):
    rng, code = np.random.default_rng(2), np.ones((2, 6), int)
    return np.stack([mutate_by_importance(STEPS, code, budget, rng, coupled) for _ in range(count)]) - code


def test_single_mutations_choose_by_importance_to_the_gamma_and_go_up_where_it_is_largest():
    change = mutate_often(0.0, SPACE.memory.maximum, 2000)
    assert (np.abs(change).sum((1, 2)) == 1).all()
    assert (change != 0).mean(0) == pytest.approx(
        IMPORTANCE**IMPORTANCE_EXPONENT / (IMPORTANCE**IMPORTANCE_EXPONENT).sum(), abs=0.07
    )
    most, least = change[:, 0, 3], change[:, 0, 5]
    assert (most == -1).sum() == 0 and (most == 1).sum() > 0
    assert (least == 1).sum() <= (least == -1).sum()


def test_coupled_mutations_raise_one_choice_and_pay_with_others():
    budget = int(count_bytes(np.ones((2, 6), int)))
    change = mutate_often(1.0, budget)
    assert ((change > 0).sum((1, 2)) == 1).all() and ((change < 0).sum((1, 2)) >= 1).all()
    assert (count_bytes(change + 1) <= budget).all()
