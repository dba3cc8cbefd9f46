"""The simulator: virtual time that adds up, on closed forms, and a study that cannot tell it from real workers."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from fakes import AdditiveEvaluator

from qra_search import Evaluation, Proposal, Study, search
from qra_search.strategies.random import RandomStrategy

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "robustness" / "workers"))
from simulator import SimulatedExecutor, lognormal_duration, report  # noqa: E402

OPTIONS = {"strategy": "random", "evaluations": 24, "seed": 1}


def simulate(workers, duration, evaluator=None, **options):
    evaluator = evaluator or AdditiveEvaluator(with_sensitivities=False)
    executor = SimulatedExecutor(evaluator, workers, duration, count_overhead=False)
    return executor, search(evaluator, **{**OPTIONS, **options}, executor=executor)


@pytest.mark.parametrize("workers", [1, 2, 8, 24])
def test_equal_evaluations_take_their_number_over_the_workers(workers):
    executor, result = simulate(workers, lambda proposal, evaluation: 60.0)
    assert executor.clock == pytest.approx(60.0 * 24 / workers)
    assert executor.utilisation == pytest.approx(1.0)
    assert len(result.trials) == 24


def test_the_clock_is_that_of_a_greedy_schedule_and_no_worker_waits():
    seconds = {}

    def duration(proposal, evaluation):
        return seconds.setdefault(len(seconds), 10.0 + 37 * len(seconds) % 50)

    executor, _ = simulate(5, duration)
    free = [0.0] * 5
    for n in range(24):  # each evaluation goes to the worker that is free first
        first = free.index(min(free))
        free[first] += seconds[n]
    assert executor.clock == pytest.approx(max(free))
    assert executor.utilisation == pytest.approx(sum(seconds.values()) / (5 * max(free)))
    assert executor.steady_utilisation() == pytest.approx(1.0)


def test_one_simulated_worker_searches_as_this_process_does():
    executor, result = simulate(1, lambda proposal, evaluation: 1.0)
    serial = search(AdditiveEvaluator(with_sensitivities=False), **OPTIONS)
    assert [(t.proposal, t.loss) for t in result.trials] == [(t.proposal, t.loss) for t in serial.trials]


def test_the_searchs_own_time_counts_against_the_workers():
    class Thinking(RandomStrategy):
        def propose(self, state, n):
            time.sleep(0.02)
            return super().propose(state, n)

    evaluator = AdditiveEvaluator(with_sensitivities=False)
    executor = SimulatedExecutor(evaluator, 2, lambda proposal, evaluation: 0.001)
    Study(evaluator, **{**OPTIONS, "strategy": Thinking()}, executor=executor).run()
    figures = report(executor, ())
    assert figures.overhead_largest >= 0.02
    assert figures.utilisation < 0.1, "workers that wait for proposals are not busy"
    assert executor.clock >= 0.02 * 8


def test_log_normal_durations_have_the_mean_that_was_asked_for():
    space = AdditiveEvaluator().space
    plan = space.uniform_plans()[0]
    duration = lognormal_duration(60.0, 0.3)
    draws = [duration(Proposal(plan, seed=s), Evaluation(1.0, 1)) for s in range(4000)]
    assert sum(draws) / len(draws) == pytest.approx(60.0, rel=0.03)
    assert duration(Proposal(plan, 0.5, seed=7), Evaluation(1.0, 1)) == pytest.approx(draws[7] / 2)


def test_what_is_proposed_together_shares_the_time_that_it_took_the_first_proposals_included():
    now = iter(range(0, 10_000, 7))
    executor = SimulatedExecutor(AdditiveEvaluator(), 3, lambda p, e: 1000.0, timer=lambda: float(next(now)))
    plans = AdditiveEvaluator().space.uniform_plans()
    futures = [executor.submit(Proposal(plan)) for plan in plans[:3]]
    executor.wait(futures)
    assert executor.overheads == [4 * 7 / 3] * 3, "four calls of the timer's 7 seconds, for three proposals"
    assert executor.clock == 7 + 1000.0
