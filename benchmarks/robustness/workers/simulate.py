"""Searches on simulated workers: utilisation, overhead, and evaluations needed against a serial search.

    python -m benchmarks.robustness.workers.simulate quality --workers 64
    python -m benchmarks.robustness.workers.simulate scale --workers 64 --trials 10000 --layers 80
    python -m benchmarks.robustness.workers.simulate scale --workers 64 --trials 200 --before 10000 --layers 80

The search's own time is measured in processor time, so that other work on the machine does not count; run with
OMP_NUM_THREADS=1, in which it is the time of an idle machine, or with `--clock wall` on one that is idle.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np

from benchmarks.robustness.workers.common import record
from benchmarks.robustness.workers.simulator import SimulatedExecutor, lognormal_duration, peak_memory
from qra_eval.evaluators.landscape import make_landscape
from qra_search import Callback, Plan, Proposal, Study, TrialLog
from qra_search.space.steps import AdjacentSteps
from qra_search.testing.scenarios import interpolate_budgets

SECONDS = 60.0
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
CHECKPOINTS = (10, 30, 100, 300, 1000, 3000, 10_000)


def make_study(landscape, options, strategy, workers, evaluations, seed, callbacks=(), before=0) -> Study:
    timer, budget = CLOCKS[options.clock], interpolate_budgets(landscape.space, 0.3)
    log = random_log(landscape, budget, before, seed)
    executor = SimulatedExecutor(landscape, workers, lognormal_duration(SECONDS, seed=seed), timer=timer)
    return Study(
        landscape,
        strategy=strategy,
        evaluations=evaluations,
        memory_budget=budget,
        seed=seed,
        log=log,
        executor=executor,
        callbacks=callbacks,
    )


def best_true(landscape, trials) -> np.ndarray:
    """Noise-free loss of the best plan so far, by truth, after each trial."""
    return np.minimum.accumulate([landscape.true_loss(t.plan) for t in trials if t.done])


def quality(options) -> None:
    """Evaluations that simulated workers need for what the serial search has reached at its end."""
    ratios, differences = [], []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        landscape = make_landscape(options.family, options.layers, options.granularity, seed=seed)
        serial = make_study(landscape, options, options.strategy, 1, options.evaluations, seed)
        serial.run()
        more = int(options.evaluations * options.allow)
        parallel = make_study(landscape, options, options.strategy, options.workers, more, seed)
        parallel.run()
        losses = best_true(landscape, serial.log.trials)
        target = losses[-1]
        curve = best_true(landscape, parallel.log.trials)
        reached = np.flatnonzero(curve <= target * (1 + options.tolerance))
        needed = int(reached[0]) + 1 if len(reached) else None
        ratios.append(needed / options.evaluations if needed else float("inf"))
        at_limit = curve[: int(1.5 * options.evaluations)][-1]
        differences.append(float(at_limit - target))
        record(
            "quality",
            strategy=options.strategy,
            family=options.family,
            layers=options.layers,
            granularity=options.granularity,
            workers=options.workers,
            seed=seed,
            serial_evaluations=options.evaluations,
            serial_loss=round(float(target), 5),
            serial_first=round(float(losses[0]), 5),
            serial_reached_it_after=int(np.flatnonzero(losses <= target)[0]) + 1,
            parallel_needed=needed,
            loss_at_1_5=round(float(at_limit), 5),
            steady_utilisation=round(parallel.executor.steady_utilisation(), 4),
        )
    record(
        "quality",
        summary=True,
        strategy=options.strategy,
        family=options.family,
        workers=options.workers,
        seeds=options.seeds,
        median_ratio=round(median(ratios), 3) if np.isfinite(median(ratios)) else None,
        worst_ratio=round(max(ratios), 3) if np.isfinite(max(ratios)) else None,
        median_loss_difference_at_1_5=round(median(differences), 5),
    )


class Growth(Callback):
    """Memory of the process as the log grows."""

    def __init__(self):
        self.memory: dict[int, int] = {}

    def on_result(self, study, trial):
        for size in CHECKPOINTS:
            if len(study.log) >= size:
                self.memory.setdefault(size, peak_memory())


def scale(options) -> None:
    """Overhead of a proposal as the log grows, memory, quality, and how busy the workers are."""
    landscape = make_landscape(options.family, options.layers, options.granularity, seed=options.first_seed)
    growth = Growth()
    study = make_study(
        landscape,
        options,
        options.strategy,
        options.workers,
        options.before + options.trials,
        options.first_seed,
        (growth,),
        options.before,
    )
    study.run()
    executor = study.executor
    overheads = executor.overheads
    late = overheads[-max(1, len(overheads) // 10) :]
    losses = best_true(landscape, study.log.trials)
    ends = [options.before, *(c for c in CHECKPOINTS if options.before < c < len(study.log)), len(study.log)]
    steps = []
    for low, high in zip(ends, ends[1:], strict=False):
        own = overheads[low - options.before : high - options.before]
        steps.append(
            {
                "trials": high,
                "overhead_median": round(median(own), 5),
                "proposals_per_second": round(len(own) / max(sum(own), 1e-9), 2),
                "mebibytes": round(growth.memory.get(high, peak_memory()) / 2**20),
                "true_loss": round(float(losses[min(high, len(losses)) - 1]), 5),
            }
        )
    record(
        "scale",
        strategy=options.strategy,
        family=options.family,
        groups=len(landscape.space),
        workers=options.workers,
        before=options.before,
        trials=len(study.log.trials),
        clock=options.clock,
        utilisation=round(executor.utilisation, 4),
        steady_utilisation=round(executor.steady_utilisation(), 4),
        proposals_per_second=round(len(overheads) / sum(overheads), 2),
        overhead_median=round(median(overheads), 4),
        overhead_late=round(median(late), 4),
        overhead_largest=round(max(overheads), 3),
        peak_mebibytes=round(peak_memory() / 2**20),
        virtual_hours=round(executor.clock / 3600, 2),
        growth=steps,
    )


def random_log(landscape, budget, count: int, seed: int) -> TrialLog:
    """A log of `count` evaluations of random plans, so that a search is seen at its late stage at once."""
    log, rng, space = TrialLog(), np.random.default_rng(1), landscape.space
    steps, plans = AdjacentSteps(space), dict[Plan, None]()
    while len(plans) < count:
        code = np.stack(
            [rng.integers(len(choices), size=len(space)) for choices in (space.bits, space.ranks)]
        )
        plans[space.decode(steps.repair(code, budget[-1], rng))] = None
    log.propose_all([Proposal(plan, seed=seed, origin="random") for plan in plans])
    for trial in log.running_trials:
        log.finish(trial.id, landscape.evaluate(trial.plan, seed=trial.seed))
    if count:  # a log with trials is not given sensitivities any more
        log.bind({"sensitivities": landscape.sensitivities().to_dict()})
    return log


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["quality", "scale"])
    parser.add_argument("--strategy", default="qra")
    parser.add_argument("--family", default="interaction")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--trials", type=int, default=1000, help="of `scale`")
    parser.add_argument(
        "--before", type=int, default=0, help="random plans in the log that `scale` begins with"
    )
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--granularity", default="layer")
    parser.add_argument("--evaluations", type=int, default=100, help="of the serial search of `quality`")
    parser.add_argument(
        "--allow", type=float, default=2.0, help="evaluations of the parallel search, as a multiple"
    )
    parser.add_argument("--tolerance", type=float, default=0.0, help="of the loss, relative")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="cpu")
    options = parser.parse_args()
    {"quality": quality, "scale": scale}[options.what](options)


if __name__ == "__main__":
    main()
