"""Seconds and memory of one proposal, by the number of trials in the log and of groups in the space.

    python -m benchmarks.strategies.proposal_time --strategy qra --out benchmarks/results/strategies/proposals.jsonl

    python -m benchmarks.strategies.proposal_time --spaces 48-layer-128-experts --budgets 1 --trials 0 10 50 --out OUT

Every figure comes from a process of its own. The log is made, not searched: the additive optimum of the sensitivities
at each of the three budgets with a tenth of its groups changed at random, brought back under the budget. Times are by
the clock, so they want an idle machine; `cpu_seconds` counts all threads. `grown_mib` is by how much the process's
private memory rose above what it had before the first proposal, at its peak.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.strategies.experts import expert_landscape
from qra_eval.evaluators.landscape import Landscape, make_landscape
from qra_search.allocate.solve import solve
from qra_search.app.bench.run import describe_environment, list_task_budgets, parse_strategy
from qra_search.log.state import StudyState
from qra_search.schemas import Plan, Proposal, Trial
from qra_search.space.steps import AdjacentSteps

SPACES = {"32-layer": (32, "layer"), "32-module": (32, "module"), "64-module": (64, "module")}
EXPERTS = "48-layer-128-experts"
REPEATS = 3
LONG = 30.0
"""Seconds of a proposal that is not repeated."""


def make(space: str) -> Landscape:
    """The landscape of a space by name."""
    return expert_landscape() if space == EXPERTS else make_landscape("interaction", *SPACES[space], seed=0)


def logged(landscape: Landscape, trials: int, seed: int = 0) -> StudyState:
    """The state of a search with so many finished trials."""
    space, sensitivities = landscape.space, landscape.sensitivities()
    budgets = list_task_budgets(space)
    starts = [space.encode(solve(space, sensitivities, budget).plan) for budget in budgets]
    steps, groups = AdjacentSteps(space), len(space)
    rng = np.random.default_rng(seed)
    done: dict[Plan, Trial] = {}
    for plan in space.uniform_plans()[:trials]:
        done[plan] = finished(landscape, len(done), plan)
    while len(done) < trials:
        k = len(done) % len(budgets)
        code = starts[k].copy()
        changed = rng.random(groups) < 0.1
        changed[rng.integers(groups)] = True
        code[0, changed] = rng.integers(0, len(space.bits), changed.sum())
        code[1, changed] = rng.integers(0, len(space.ranks), changed.sum())
        plan = space.decode(steps.repair(code, budgets[k], rng))
        if plan not in done:
            done[plan] = finished(landscape, len(done), plan)
    return StudyState(
        space, tuple(done.values()), sensitivities, budgets, seed, 10.0 * trials, landscape.fidelities
    )


def finished(landscape: Landscape, number: int, plan) -> Trial:
    return Trial(number, Proposal(plan), "done", landscape.evaluate(plan))


def measure(strategy: str, space: str, trials: int, budgets: int) -> dict:
    """One row; run in a fresh process, so that the peak of its memory is this measurement's own."""
    state = logged(make(space), trials)
    state = replace(state, memory_budgets=state.memory_budgets if budgets == 3 else state.memory_budgets[1:2])
    chosen = parse_strategy(strategy)
    ctypes.CDLL(None).malloc_trim(0)  # what making the log freed must not be counted as there
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, own = memory_mib("VmRSS"), memory_mib("RssAnon")
    wall, cpu = [], []
    for _ in range(REPEATS):
        clock, processor = time.perf_counter(), time.process_time()
        proposals = chosen.propose(replace(state), 1)
        wall.append(time.perf_counter() - clock)
        cpu.append(time.process_time() - processor)
        if wall[0] > LONG:
            break
    assert len(proposals) == 1
    peak = memory_mib("VmHWM")
    return {
        "strategy": strategy,
        "space": space,
        "variables": 2 * len(state.space),
        "trials": trials,
        "budgets": budgets,
        "seconds": round(median(wall), 4),
        "slowest": round(max(wall), 4),
        "cpu_seconds": round(median(cpu), 4),
        "peak_mib": round(peak, 1),
        "peak_mib_before": round(before, 1),
        "grown_mib": round(peak - memory_mib("RssFile") - own, 1),
    }


def memory_mib(name: str) -> float:
    """A figure of this process's memory by its name in Linux's `status`."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--strategy", nargs="+", default=["qra"])
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=[*SPACES, EXPERTS])
    parser.add_argument("--trials", nargs="+", type=int, default=[100, 300, 1000, 10_000])
    parser.add_argument("--budgets", type=int, default=3, choices=[1, 3], help="one: the middle one")
    parser.add_argument("--out", type=Path, help="JSONL to add the rows to")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.strategy[0], options.spaces[0], options.trials[0], options.budgets)))
        return
    stamp = describe_environment()
    for strategy in options.strategy:
        for space in options.spaces:
            for trials in options.trials:
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.strategies.proposal_time",
                    "--one",
                    "--strategy",
                    strategy,
                ]
                command += ["--spaces", space, "--trials", str(trials), "--budgets", str(options.budgets)]
                row = json.loads(
                    subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                )
                print(row, flush=True)
                if options.out:
                    with options.out.open("a") as file:
                        file.write(json.dumps(row | {"environment": stamp}) + "\n")


if __name__ == "__main__":
    main()
