"""Seconds and memory of one proposal, by the number of trials in the log and of groups in the space.

    python benchmarks/strategies/proposal_time.py --strategy qra --out benchmarks/results/strategies/proposals.jsonl

Every figure comes from a process of its own. The log is made, not searched: the additive optimum of the prior at each
of the three budgets with a tenth of its groups changed at random, brought back under the budget. Times are by the
clock, so they want an idle machine; `cpu_seconds` counts all threads.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from qra_eval.evaluators.landscape import Landscape, make_landscape
from qra_search.bench.run import environment
from qra_search.bench.tasks import parse_strategy, task_budgets
from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.strategies.additive import additive_plan
from qra_search.strategies.random import repair
from qra_search.surrogates.prior_table import prior_table

SPACES = {"32-layer": (32, "layer"), "32-module": (32, "module"), "64-module": (64, "module")}
REPEATS = 3


def logged(landscape: Landscape, trials: int, seed: int = 0) -> StudyState:
    """The state of a search with so many finished trials."""
    space, prior = landscape.space, landscape.prior()
    budgets = task_budgets(space)
    table = prior_table(space, prior)
    starts = [space.encode(additive_plan(space, table, budget)) for budget in budgets]
    rng = np.random.default_rng(seed)
    done: dict[str, Trial] = {}
    for plan in space.uniform_plans()[:trials]:
        done[plan.key] = finished(landscape, len(done), plan)
    while len(done) < trials:
        k = len(done) % len(budgets)
        b, r = (levels.copy() for levels in starts[k])
        changed = rng.random(len(b)) < 0.1
        changed[rng.integers(len(b))] = True
        b[changed] = rng.integers(0, len(space.bits), changed.sum())
        r[changed] = rng.integers(0, len(space.ranks), changed.sum())
        plan = space.decode(*repair(space.memory, b, r, budgets[k], rng))
        if plan.key not in done:
            done[plan.key] = finished(landscape, len(done), plan)
    return StudyState(space, tuple(done.values()), prior, budgets, seed, 10.0 * trials, landscape.fidelities)


def finished(landscape: Landscape, number: int, plan) -> Trial:
    return Trial(number, Proposal(plan), "done", landscape.evaluate(plan))


def measure(strategy: str, space: str, trials: int) -> dict:
    """One row; run in a fresh process, so that the peak of its memory is this measurement's own."""
    layers, granularity = SPACES[space]
    state = logged(make_landscape("interaction", layers, granularity, seed=0), trials)
    before = peak_mib()
    chosen = parse_strategy(strategy)
    wall, cpu = [], []
    for _ in range(REPEATS):
        clock, processor = time.perf_counter(), time.process_time()
        proposals = chosen.propose(state, 1)
        wall.append(time.perf_counter() - clock)
        cpu.append(time.process_time() - processor)
    assert len(proposals) == 1
    return {
        "strategy": strategy, "space": space, "variables": 2 * len(state.space), "trials": trials,
        "seconds": round(median(wall), 4), "slowest": round(max(wall), 4), "cpu_seconds": round(median(cpu), 4),
        "peak_mib": round(peak_mib(), 1), "peak_mib_before": round(before, 1),
    }  # fmt: skip


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--strategy", nargs="+", default=["qra"])
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=list(SPACES))
    parser.add_argument("--trials", nargs="+", type=int, default=[100, 300, 1000, 10_000])
    parser.add_argument("--out", type=Path, help="JSONL to add the rows to")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.strategy[0], options.spaces[0], options.trials[0])))
        return
    stamp = environment()
    for strategy in options.strategy:
        for space in options.spaces:
            for trials in options.trials:
                command = [sys.executable, __file__, "--one", "--strategy", strategy, "--spaces", space]
                done = subprocess.run([*command, "--trials", str(trials)], capture_output=True, text=True, check=True)
                row = json.loads(done.stdout)
                print(row, flush=True)
                if options.out:
                    with options.out.open("a") as file:
                        file.write(json.dumps(row | {"environment": stamp}) + "\n")


if __name__ == "__main__":
    main()
