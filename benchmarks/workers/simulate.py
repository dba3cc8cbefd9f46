"""Searches on simulated workers: utilisation, overhead, and evaluations needed against a serial search.

python benchmarks/workers/simulate.py quality --workers 64
python benchmarks/workers/simulate.py scale --workers 64 --trials 10000 --layers 80
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import record  # noqa: E402

from qra_eval.surrogate import make_landscape  # noqa: E402
from qra_search import Study  # noqa: E402
from qra_search.simulator import SimulatedExecutor, lognormal_duration, report  # noqa: E402
from qra_search.toys import budgets_of  # noqa: E402

SECONDS = 60.0


def run(landscape, strategy, workers, evaluations, seed, budget, callbacks=()):
    """One simulated search; the executor and the trials."""
    executor = SimulatedExecutor(landscape, workers, lognormal_duration(SECONDS, seed=seed))
    study = Study(
        landscape,
        strategy=strategy,
        evaluations=evaluations,
        memory_budget=budget,
        seed=seed,
        executor=executor,
        callbacks=callbacks,
    )
    study.run()
    return executor, study


def best_true(landscape, trials) -> np.ndarray:
    """Noise-free loss of the best plan so far, by truth, after each trial."""
    return np.minimum.accumulate([landscape.true_loss(t.plan) for t in trials if t.done])


def quality(options) -> None:
    """Evaluations that simulated workers need for what the serial search has reached at its end."""
    ratios, regrets = [], []
    for seed in range(options.seeds):
        landscape = make_landscape(options.family, options.layers, options.granularity, seed=seed)
        budget = budgets_of(landscape.space, 0.3)
        _, serial = run(landscape, options.strategy, 1, options.evaluations, seed, budget)
        more = int(options.evaluations * options.allow)
        executor, parallel = run(landscape, options.strategy, options.workers, more, seed, budget)
        target = best_true(landscape, serial.log.trials)[-1]
        curve = best_true(landscape, parallel.log.trials)
        reached = np.flatnonzero(curve <= target * (1 + options.tolerance))
        needed = int(reached[0]) + 1 if len(reached) else None
        serial_needed = int(np.flatnonzero(best_true(landscape, serial.log.trials) <= target)[0]) + 1
        ratios.append(needed / options.evaluations if needed else float("inf"))
        at_limit = curve[: int(1.5 * options.evaluations)][-1]
        regrets.append(float(at_limit - target))
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
            serial_reached_it_after=serial_needed,
            parallel_needed=needed,
            loss_at_1_5=round(float(at_limit), 5),
            steady_utilisation=round(executor.steady_utilisation(), 4),
        )
    record(
        "quality",
        summary=True,
        strategy=options.strategy,
        family=options.family,
        workers=options.workers,
        median_ratio=round(median(ratios), 3),
        worst_ratio=round(max(ratios), 3) if np.isfinite(max(ratios)) else None,
        median_loss_difference_at_1_5=round(median(regrets), 5),
    )


def scale(options) -> None:
    """Overhead of a proposal as the log grows, and how busy the workers are."""
    landscape = make_landscape(options.family, options.layers, "module", seed=0)
    budget = budgets_of(landscape.space, 0.3)
    executor, study = run(landscape, options.strategy, options.workers, options.trials, 0, budget)
    figures = report(executor, study.log.trials)
    record(
        "scale",
        strategy=options.strategy,
        groups=len(landscape.space),
        workers=options.workers,
        trials=figures.trials,
        utilisation=round(figures.utilisation, 4),
        steady_utilisation=round(figures.steady_utilisation, 4),
        proposals_per_second=round(figures.proposals_per_second, 2),
        overhead_median=round(figures.overhead_median, 4),
        overhead_late=round(figures.overhead_late, 4),
        overhead_largest=round(figures.overhead_largest, 3),
        peak_mebibytes=round(figures.peak_memory_bytes / 2**20),
        virtual_hours=round(figures.virtual_seconds / 3600, 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "scale"])
    parser.add_argument("--strategy", default="additive")
    parser.add_argument("--family", default="interaction")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--granularity", default="layer")
    parser.add_argument("--evaluations", type=int, default=200, help="of the serial search")
    parser.add_argument("--allow", type=float, default=2.0, help="evaluations of the parallel search, as a multiple")
    parser.add_argument("--tolerance", type=float, default=0.0, help="of the loss, relative")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    {"quality": quality, "scale": scale}[options.what](options)


if __name__ == "__main__":
    main()
