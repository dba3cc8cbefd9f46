"""The loop: budgets hold, failures are recorded, a broken-off study ends like an unbroken one."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
from fakes import AdditiveEvaluator, make_space

from qra_search import (
    BadInput,
    Evaluation,
    EvaluationFailed,
    Plan,
    Proposal,
    Strategy,
    Study,
    TrialLog,
    search,
)
from qra_search.app.report.finding import summarize_run
from qra_search.executors.base import InProcessExecutor, WorkerUnusable
from qra_search.log.journal import LogError
from qra_search.schemas import Group, Linear
from qra_search.space.budgets import resolve_budgets
from qra_search.space.space import SearchSpace
from qra_search.study.study import StudyFailed, list_initial_plans
from qra_search.testing.scenarios import ToyEvaluator, make_toy_space


def budget_of(evaluator, bits=3, rank=8):
    return evaluator.space.memory_bytes(evaluator.space.uniform(bits, rank))


def test_evaluations_are_of_plans_and_the_prior_is_measured_once_and_charged_where_strategies_are_compared(
    evaluator, tmp_path
):
    log = tmp_path / "log.jsonl"
    result = search(
        evaluator, strategy="additive", evaluations=4, memory_budget=budget_of(evaluator), log=log
    )
    assert result.spent == 4 and len(result.trials) == 4
    charged = Study(
        evaluator, strategy="additive", evaluations=4.5, memory_budget=budget_of(evaluator), charged=True
    )
    assert charged.run().spent == 4.5 and len(charged.log) == 4
    assert TrialLog(log).get_meta("sensitivities")["source"] == "exact"


def test_uniform_plans_come_first_and_stay_in_the_result(evaluator):
    budget = budget_of(evaluator)
    result = search(evaluator, strategy="random", evaluations=6, memory_budget=budget)
    design = list_initial_plans(evaluator.space, [budget])
    assert [t.plan for t in result.trials[: len(design)]] == design
    assert [c.plan for c in result.uniform] == design
    assert result.comparison().baseline is not None


def test_the_design_holds_the_largest_rank_of_the_two_largest_bit_widths_that_fit():
    space = make_space()
    budget = space.memory_bytes(space.uniform(3, 8))
    assert [(p.bits[0], p.ranks[0]) for p in list_initial_plans(space, [budget])] == [(2, 16), (3, 8)]


def test_a_failed_evaluation_is_recorded_and_not_asked_for_again():
    class Picky(AdditiveEvaluator):
        def evaluate(self, plan, *, fidelity=1.0, seed=0):
            if plan.bits[0] == 2:
                raise EvaluationFailed("layer 0 breaks")
            if plan.bits[1] == 2:
                return Evaluation(float("nan"), self.space.memory_bytes(plan))
            if plan.bits[2] == 2:
                return Evaluation(1.0, 1)
            return super().evaluate(plan, fidelity=fidelity, seed=seed)

    result = search(Picky(), strategy="random", evaluations=30, memory_budget=budget_of(AdditiveEvaluator()))
    assert {"layer 0 breaks", "the loss is nan, and must be a finite number below 1e100"} <= {
        t.reason for t in result.failures()
    }
    assert any("evaluate() reported memory_bytes=1 where" in t.reason for t in result.failures())
    assert len(result.trials) == 30 and len(result.candidates) == 30 - len(result.failures())


def test_an_evaluator_that_always_fails_stops_the_study():
    class Broken(AdditiveEvaluator):
        def evaluate(self, plan, *, fidelity=1.0, seed=0):
            raise RuntimeError("no such device")

    with pytest.raises(StudyFailed, match="the first 5 evaluations all failed.*no such device"):
        search(Broken(), strategy="random", evaluations=30, memory_budget=None)


class AtOnce(InProcessExecutor):
    """Six evaluations of one plan each that end together: the outcomes that are given, else what the evaluator says."""

    slots = 6

    def __init__(self, evaluator, outcomes):
        super().__init__(evaluator)
        self.outcomes = iter(outcomes)

    def submit(self, proposal):
        future = Future()
        error = next(self.outcomes, None)
        future.set_exception(error) if error else future.set_result(self.evaluator.evaluate(proposal.plan))
        return future

    def wait(self, flying):
        return set(flying)


@pytest.mark.parametrize(
    ("outcomes", "ended"),
    [([EvaluationFailed("no")] * 5, 12), ([WorkerUnusable("gone")], 5), ([None, WorkerUnusable("gone")], 5)],
)
def test_all_results_that_ended_together_are_recorded_before_the_study_stops(tmp_path, outcomes, ended):
    log = tmp_path / "log.jsonl"
    study = Study(
        AdditiveEvaluator(),
        strategy="random",
        evaluations=12,
        log=log,
        executor=AtOnce(AdditiveEvaluator(), outcomes),
    )
    with pytest.raises(StudyFailed, match="gone") if ended < 12 else nullcontext():
        study.run()
    assert sum(trial.status != "running" for trial in TrialLog(log)) == ended


def test_sensitivities_that_are_given_to_a_log_without_any_are_in_it_from_then_on(evaluator, tmp_path):
    log, sensitivities = tmp_path / "log.jsonl", evaluator.sensitivities()
    evaluator.sensitivities = lambda: None
    search(evaluator, strategy="random", evaluations=3, log=log)
    search(evaluator, strategy="random", evaluations=4, log=log, sensitivities=sensitivities)
    assert TrialLog(log).get_meta("sensitivities") == sensitivities.to_dict()


@pytest.mark.parametrize("slots", [1, 6])
def test_whether_a_batch_stops_the_study_does_not_depend_on_the_order_of_its_results(slots):
    class FirstFiveFail(AdditiveEvaluator):
        def evaluate(self, plan, *, fidelity=1.0, seed=0):
            if plan in failing:
                raise EvaluationFailed("out of memory")
            return super().evaluate(plan, fidelity=fidelity, seed=seed)

    class LastFirst(InProcessExecutor):
        def wait(self, flying):
            return {list(flying)[-1]}

    options = {"strategy": "random", "evaluations": 12, "batch": 6}
    failing = [trial.plan for trial in search(AdditiveEvaluator(), **options).trials[1:6]]
    executor = LastFirst(FirstFiveFail())
    executor.slots = slots
    assert len(search(executor.evaluator, **options, executor=executor).failures()) == 5


@pytest.mark.parametrize(
    ("choice", "message"), [((8, 16), "state.largest_budget is"), ((2, 4), "again: see state.seen")]
)
def test_a_strategy_that_breaks_the_budget_or_repeats_itself_is_stopped(evaluator, choice, message):
    class Stuck(Strategy):
        def propose(self, state, n):
            return [Proposal(state.space.uniform(*choice))]

    with pytest.raises(StudyFailed, match=message):
        search(evaluator, strategy=Stuck(), evaluations=9, memory_budget=budget_of(evaluator))


@pytest.mark.parametrize(
    ("proposed", "message"),
    [
        (None, "instead of a list of Proposal"),
        (["uniform"], "instead of a list of Proposal"),
    ],
)
def test_what_is_no_proposal_is_refused_before_it_is_evaluated(evaluator, proposed, message):
    class Odd(Strategy):
        def propose(self, state, n):
            return proposed

    study = Study(evaluator, strategy=Odd(), evaluations=9, memory_budget=budget_of(evaluator))
    with pytest.raises(StudyFailed, match=message):
        study.run()
    assert len(study.log) == len(study.design)


def test_another_evaluator_is_refused_on_the_same_log(evaluator, tmp_path):
    search(evaluator, evaluations=3, log=tmp_path / "log")
    with pytest.raises(LogError, match="space"):
        search(AdditiveEvaluator(make_space(groups=3)), evaluations=3, log=tmp_path / "log")


@pytest.mark.parametrize(("asked", "batch", "slots"), [(16, 4, 1), (21, 6, 3), (3, None, 4)])
def test_no_more_is_evaluated_than_was_asked_for_with_any_batch_and_number_of_workers(
    evaluator, asked, batch, slots
):
    executor = InProcessExecutor(evaluator)
    executor.slots = slots
    assert (
        search(evaluator, strategy="random", evaluations=asked, batch=batch, executor=executor).spent == asked
    )


def test_all_workers_are_busy_up_to_the_last_evaluations(evaluator):
    together = threading.Barrier(4)  # an evaluation with fewer beside it waits, and fails

    class Threads(InProcessExecutor):
        slots = 4

        def submit(self, proposal):
            return pool.submit(self.evaluate, proposal)

        def evaluate(self, proposal):
            together.wait(5)
            return self.evaluator.evaluate(proposal.plan, fidelity=proposal.fidelity, seed=proposal.seed)

    with ThreadPoolExecutor(4) as pool:
        result = search(evaluator, strategy="random", evaluations=12, executor=Threads(evaluator))
    assert result.spent == 12 and not result.failures()


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        (
            "tiny",
            r"evaluator is 'tiny' \(str\): an Evaluator is needed; qra_search.plan takes names",
        ),
        (AdditiveEvaluator, r"evaluator is .*AdditiveEvaluator.* \(ABCMeta\): an Evaluator is needed"),
        (make_space(), "an Evaluator is needed"),
    ],
    ids=["a name", "a class", "a space"],
)
def test_an_evaluator_of_another_kind_is_refused(evaluator: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        search(evaluator)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": 3}, r"strategy is 3 \(int\): the name of a strategy, or a Strategy, is needed"),
        ({"strategy": AdditiveEvaluator}, "strategy is .*AdditiveEvaluator"),
        ({"memory_budget": "lots"}, "'lots' is not a memory budget: write one such as 108MiB"),
        ({"memory_budget": {"MiB": 3}}, "is not a memory budget"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_an_option_of_another_kind_is_refused_before_anything_is_spent(
    options: dict[str, Any], message: str
) -> None:
    evaluator = AdditiveEvaluator()
    with pytest.raises(BadInput, match=message):
        Study(evaluator, **options)
    assert evaluator.calls == 0


class AllRight(ToyEvaluator):
    """As by a task's own measure: the loss is zero once no group has fewer than 4 bits."""

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        loss = 0.0 if min(plan.bits) >= 4 else 0.25
        return Evaluation(loss=loss, memory_bytes=self.space.memory_bytes(plan))


def test_a_uniform_plan_without_any_loss_is_beaten_by_no_share():
    result = search(AllRight(make_toy_space()), strategy="random", evaluations=8, memory_budget="uniform4r8")
    (comparison,) = result.comparisons
    assert comparison.baseline is not None and comparison.baseline.loss == 0.0
    assert comparison.change is None and "None of the plans found" in summarize_run(result)


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
    with pytest.raises(BadInput, match="this space does not have: give the budget in bytes"):
        resolve_budgets(space, "75%")
