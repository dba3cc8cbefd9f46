"""Sensitivities from another run's trials: near the truth, carried to siblings by kind and depth, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from cli_runner import Qra
from fakes import AdditiveEvaluator, make_space

from qra_search import Group, Linear, SearchSpace, Study, TrialLog, search
from qra_search.log.errors import LogMismatch
from qra_search.strategies.additive import additive_plan
from qra_search.study.transfer import carried_over, learnt_sensitivities
from qra_search.surrogates.sensitivity_table import flat_sensitivities, sensitivity_table
from qra_search.testing.scenarios import budgets_of


class Unmeasured(AdditiveEvaluator):
    """An evaluator whose own prior would be expensive."""

    def sensitivities(self):
        raise AssertionError("the sensitivities were measured")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A run without sensitivities, at one budget and seed, noise included."""
    log = tmp_path_factory.mktemp("earlier") / "log"
    evaluator = AdditiveEvaluator(make_space(9), noise=0.01, with_sensitivities=False)
    search(evaluator, strategy="random", evaluations=80, seed=3, log=log)
    return log


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(np.log(a), np.log(b))[0, 1])


def test_what_is_learnt_is_nearer_the_truth_than_what_was_known_before(earlier):
    evaluator = AdditiveEvaluator(make_space(9))
    truth = evaluator.sensitivities().bits_damage[:, 0]
    before, after = flat_sensitivities(evaluator.space), learnt_sensitivities(earlier, evaluator.space)
    assert correlation(after.bits_damage[:, 0], truth) > 0.9 > correlation(before.bits_damage[:, 0], truth)
    assert np.allclose(after.bits_damage[:, 0] / truth, 1.0, atol=0.5), "in nats, not only in order"


def test_it_is_taken_in_place_of_the_evaluators_own_and_costs_nothing(earlier, tmp_path):
    evaluator = Unmeasured(make_space(9))
    sensitivities = learnt_sensitivities(earlier, evaluator.space)
    study = Study(evaluator, strategy="additive", evaluations=6, sensitivities=sensitivities, log=tmp_path / "log")
    result = study.run()
    assert result.sensitivities.cost == 0 and "learnt from" in result.sensitivities.source
    assert (result.sensitivities.bits_damage == sensitivities.bits_damage).all()
    assert sum(t.done for t in result.trials) == 6
    with TrialLog(tmp_path / "log") as log:
        assert log.meta("prior") == sensitivities.to_dict()


def test_a_log_that_is_gone_on_with_keeps_its_prior(earlier, tmp_path):
    first, other = learnt_sensitivities(earlier, make_space(9)), flat_sensitivities(make_space(9))
    options = {"strategy": "additive", "log": tmp_path / "log"}
    Study(Unmeasured(make_space(9)), evaluations=5, sensitivities=first, **options).run()
    result = Study(Unmeasured(make_space(9)), evaluations=8, sensitivities=other, **options).run()
    assert (result.sensitivities.bits_damage == first.bits_damage).all()


def test_plans_chosen_by_it_at_any_budget_are_nearer_the_best_there_is(earlier):
    evaluator = AdditiveEvaluator(make_space(9))
    budgets = budgets_of(evaluator.space, *np.linspace(0.1, 0.9, 9))

    def losses(sensitivities):
        table = sensitivity_table(evaluator.space, sensitivities)
        return np.array([evaluator.true_loss(additive_plan(evaluator.space, table, b)) for b in budgets])

    best = losses(evaluator.sensitivities())  # exact: the truth is additive
    alone, taught = losses(None) - best, losses(learnt_sensitivities(earlier, evaluator.space)) - best
    assert (taught >= -1e-12).all() and taught.sum() < 0.5 * alone.sum()


def groups(layers: int, *kinds: str, spoken: bool = True) -> tuple[Group, ...]:
    linear = Linear(name="w", out_features=8, in_features=8)
    return tuple(
        Group(name=f"layers.{i}.{k}", linears=(linear,), kind=k if spoken else "", depth=i if spoken else None)
        for i in range(layers)
        for k in kinds
    )


@pytest.mark.parametrize("spoken", [True, False])
def test_a_deeper_sibling_takes_each_kind_at_its_share_of_the_depth(spoken):
    known, wanted = groups(3, "q", "v", spoken=spoken), groups(5, "v", "q", spoken=spoken)
    values = np.array([[1.0], [100.0], [4.0], [100.0], [16.0], [0.0]])  # q: 1, 4, 16; v: 100, 100, 0
    out = carried_over(values, known, wanted)[:, 0]
    assert np.allclose(out[1::2], [1, 2, 4, 8, 16])
    assert np.allclose(out[[0, 4]], 100) and out[8] == 0


def test_the_same_groups_keep_their_values():
    values = np.random.default_rng(0).uniform(1e-6, 3, (6, 4))
    assert np.allclose(carried_over(values, groups(3, "q", "v"), groups(3, "q", "v")), values, rtol=1e-12)


def few(tmp_path, **options):
    log = tmp_path / "few"
    search(AdditiveEvaluator(make_space(9, **options)), strategy="random", evaluations=5, log=log)
    return log


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (make_space(9, bits=(2, 5)), r"searched with bits \[2, 3, 4, 8\]: nothing can be learnt of \[5\]"),
        (make_space(9, ranks=(4, 64)), r"searched with ranks \[4, 8, 16\]: nothing can be learnt of \[64\]"),
        (SearchSpace(groups=groups(2, "q"), ranks=(4, 8)), "no groups of the kind 'q', only layer"),
    ],
    ids=["bits", "ranks", "kinds"],
)
def test_a_run_of_another_kind_is_refused_with_what_differs(earlier, space, says):
    with pytest.raises(LogMismatch, match=says) as caught:
        learnt_sensitivities(earlier, space)
    assert "\n" not in str(caught.value)


def test_a_run_too_short_or_missing_is_refused(tmp_path):
    with pytest.raises(LogMismatch, match="holds 5 plans evaluated in full, 8 are needed"):
        learnt_sensitivities(few(tmp_path), make_space(9))
    with pytest.raises(LogMismatch, match="does not exist"):
        learnt_sensitivities(tmp_path / "nothing", make_space(9))
    TrialLog(tmp_path / "empty").set_meta("seed", 1)
    with pytest.raises(LogMismatch, match="holds no search space"):
        learnt_sensitivities(tmp_path / "empty", make_space(9))


def test_the_command_line_learns_from_a_run_of_a_smaller_sibling(tmp_path, capsys):
    qra = Qra(capsys)
    assert qra.search(tmp_path / "small", evaluations=20).status == 0
    outcome = qra.search(
        tmp_path / "large", "--set", "options.layers=6", "--learn-from", tmp_path / "small", strategy="additive"
    )
    assert outcome.status == 0, outcome.err
    with TrialLog(tmp_path / "large" / "trials.jsonl") as log:
        assert "learnt from" in log.meta("prior")["source"] and len(log.meta("prior")["bits_damage"]) == 6
    wrong = qra.search(tmp_path / "other", "--learn-from", tmp_path / "nothing")
    assert wrong.status == 2 and "nothing does not exist: give a trial log" in wrong.err.splitlines()[-1]
    assert not (tmp_path / "other").exists()
    (tmp_path / "small" / "trials.jsonl").rename(tmp_path / "gone")
    resumed = qra("search", tmp_path / "large", "-n", 14)
    assert resumed.status == 0, resumed.err
