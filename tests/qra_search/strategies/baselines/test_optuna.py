"""Optuna's samplers, rebuilt from the log, see what the log says and obey the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

optuna = pytest.importorskip("optuna", reason="the optional extra optuna is not installed")

from qra_search.strategies import make_strategy  # noqa: E402
from qra_search.strategies.baselines.optuna import SAMPLERS, OptunaStrategy  # noqa: E402
from qra_search.study.study import check_proposals  # noqa: E402
from qra_search.testing.scenarios import ToyEvaluator, logged_state, scenario, toy_space  # noqa: E402


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_proposes_lawfully_and_repeatably(sampler):
    state = scenario("one layer" if sampler == "gp" else "groups with fewer choices")
    options = {"n_startup_trials": 2} if sampler == "gp" else {}
    strategy = make_strategy(f"optuna:{sampler}", **options)
    proposals = strategy.propose(state, 1)
    check_proposals(proposals, state)
    # A sampler that asks for a known plan again and again (older GP samplers do) gets a random one in its place.
    assert [p.origin for p in proposals] in ([sampler], ["random"] if sampler == "gp" else [sampler])
    assert proposals == make_strategy(f"optuna:{sampler}", **options).propose(state, 1)


def test_the_rebuilt_study_holds_every_trial_with_its_loss_and_bytes():
    state = logged_state(ToyEvaluator(failing=0.3), 12, pending=2)
    study = OptunaStrategy("tpe").study(state)
    assert [t.state.name for t in study.trials] == [
        {"done": "COMPLETE", "failed": "FAIL", "running": "RUNNING"}[t.status] for t in state.trials
    ]
    done = [t for t in study.trials if t.values]
    assert [t.values for t in done] == [[t.loss, state.space.memory_bytes(t.plan)] for t in state.full]


def test_one_named_budget_leaves_the_loss_as_only_objective():
    state = scenario("one budget")
    study = OptunaStrategy("random").study(state)
    assert study.directions == [optuna.study.StudyDirection.MINIMIZE]
    assert [t.values for t in study.trials if t.values] == [[t.loss] for t in state.full]


@pytest.mark.parametrize("sampler", ["nsgaii", "nsgaiii"])
def test_genetic_samplers_go_on_to_the_next_generation(sampler):
    evaluator = ToyEvaluator(toy_space(20))
    state = logged_state(evaluator, 12)
    strategy = OptunaStrategy(sampler, population_size=5, mutation_prob=0.0, crossover_prob=0.0)
    study = strategy.study(state)
    generations = [study.sampler.get_trial_generation(study, t) for t in study.trials]
    assert generations == [0] * 5 + [1] * 5 + [2] * 2
    # Without crossover or mutation a child is a parent again, and so is a repeat that random plans replace.
    assert strategy.propose(state, 1)[0].origin == "random"


def test_the_sampler_learns_from_the_log():
    evaluator = ToyEvaluator(toy_space(3))
    state = logged_state(evaluator, 30)
    shuffled = tuple(
        replace(t, evaluation=replace(t.evaluation, loss=u.loss))
        for t, u in zip(state.trials, reversed(state.trials), strict=True)
    )
    strategy = OptunaStrategy("tpe")
    assert strategy.propose(state, 1) != strategy.propose(replace(state, trials=shuffled), 1)


def test_optunas_verbosity_is_as_before():
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    OptunaStrategy("random").propose(scenario("one trial"), 1)
    assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    optuna.logging.set_verbosity(optuna.logging.INFO)


def test_an_unknown_sampler_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="unknown Optuna sampler 'tpo': did you mean tpe"):
        make_strategy("optuna:tpo")
