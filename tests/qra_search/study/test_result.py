"""What is handed over: front, best plan, comparison, files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fakes import AdditiveEvaluator

from qra_search import BudgetTooSmall, Evaluation, Proposal, Study, TrialLog, search
from qra_search.allocate.solve import solve
from qra_search.app.report.finding import summarize_run
from qra_search.errors import EvaluationFailed
from qra_search.space.budgets import resolve_budgets
from qra_search.space.serialization import plan_from_dict, plan_to_dict, read_sensitivities


@pytest.fixture
def result(evaluator):
    return search(evaluator, strategy="random", evaluations=25)


def test_the_best_plan_is_the_best_that_fits(result):
    result = replace(result, sensitivities=None)
    budget = result.front[len(result.front) // 2].memory_bytes
    best = result.best(budget)
    assert best.loss == min(c.loss for c in result.candidates if c.memory_bytes <= budget)
    assert best.plan == result.comparison(budget).chosen.plan


def test_the_sensitivities_plan_is_a_candidate_until_evaluations_speak_against_them():
    evaluator = AdditiveEvaluator()
    middle = (evaluator.space.memory.minimum + evaluator.space.memory.maximum) // 2
    result = search(evaluator, evaluations=1, memory_budget=middle)
    best, allocation = result.best(), result.allocation()
    assert (
        result.spent == 1 and best.plan == allocation.plan == result.choose_plan() and best.evaluations == 0
    )
    assert best.loss == pytest.approx(evaluator.evaluate(best.plan).loss)  # the sensitivities are exact here
    assert summarize_run(result).endswith("It was not evaluated.") and json.dumps(
        result.to_dict(), allow_nan=False
    )
    more = search(evaluator, "random", evaluations=12, memory_budget=middle)
    assert more.best().plan == allocation.plan  # what random plans found is worse, and as was predicted
    losses = [c.loss for c in sorted(more.candidates, key=lambda c: -c.loss)]
    other = [
        replace(c, loss=x) for c, x in zip(sorted(more.candidates, key=lambda c: c.loss), losses, strict=True)
    ]
    assert replace(more, candidates=tuple(other)).best() in other  # nothing that was predicted came true


def test_a_plan_that_failed_is_not_handed_over(monkeypatch):
    evaluator = AdditiveEvaluator()
    budget = resolve_budgets(evaluator.space, "uniform3r8")[0]
    allocated = solve(evaluator.space, evaluator.sensitivities(), budget).plan
    evaluate = evaluator.evaluate

    def failing(plan, **options):
        if plan == allocated:
            raise EvaluationFailed("out of memory")
        return evaluate(plan, **options)

    monkeypatch.setattr(evaluator, "evaluate", failing)
    result = search(evaluator, "additive", evaluations=3, memory_budget="uniform3r8")
    assert [trial.plan for trial in result.failures()] == [allocated] and result.best() in result.candidates
    tight = result.space.memory_bytes(allocated)
    larger = replace(result, candidates=tuple(replace(c, memory_bytes=tight + 1) for c in result.candidates))
    assert (
        larger.allocation(tight).plan == allocated
        and larger.best(tight) is None
        and larger.choose_plan(tight) is None
    )


def test_a_search_of_the_whole_front_that_evaluated_nothing_has_no_plan(evaluator, tmp_path):
    study = Study(evaluator)
    study.stop()
    result = study.run()
    assert result.sensitivities is not None and result.choose_plan() is result.allocation() is None
    result.write(tmp_path)
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("budget", ["75%", "3.5bpw", "uniform3r8", "1MiB"])
def test_a_budget_is_written_as_for_a_search(result, budget):
    (limit,) = resolve_budgets(result.space, budget)
    assert result.best(budget) == result.best(limit)
    assert result.comparison(budget).budget_bytes == limit and result.allocation(budget) == result.allocation(
        limit
    )
    for ask in (result.best, result.comparison, result.allocation):
        with pytest.raises(BudgetTooSmall, match="below the smallest plan"):
            ask("1KiB")


def test_the_winner_is_picked_by_the_mean_of_its_replicates():
    evaluator, log = AdditiveEvaluator(), TrialLog()
    lucky, steady = evaluator.space.uniform(3, 8), evaluator.space.uniform(4, 8)
    for plan, seed, loss in ((lucky, 0, 1.0), (lucky, 1, 3.0), (steady, 0, 1.5), (steady, 1, 1.5)):
        trial = log.propose(Proposal(plan, seed=seed))
        log.finish(trial.id, Evaluation(loss, evaluator.space.memory_bytes(plan), seed=seed))
    result = Study(evaluator, strategy="additive", log=log).result()
    assert result.best().plan == steady
    # Pooled variance of (1, 3) and (1.5, 1.5) is 2 / 2 degrees of freedom; halved by two replicates.
    assert result.best().loss_std == pytest.approx(0.5**0.5)


def test_the_folder_holds_plan_and_sensitivities(result, evaluator, tmp_path):
    result.write(tmp_path)
    plan = plan_from_dict(evaluator.space, json.loads((tmp_path / "plan.json").read_text()))
    assert plan == result.best().plan
    space, sensitivities, _ = read_sensitivities(tmp_path / "sensitivities.json")
    assert sensitivities.cost == 0.5 and space.signature == evaluator.space.signature


def test_a_plan_of_another_space_is_refused(evaluator):
    data = plan_to_dict(evaluator.space, evaluator.space.uniform(3, 8))
    data["groups"][0]["name"] = "elsewhere"
    with pytest.raises(ValueError, match="belongs to another search space"):
        plan_from_dict(evaluator.space, data)
