"""Evaluations an hour of two workers against one, on an evaluator that leaves the cores alone (it sleeps).

python benchmarks/workers/speedup.py --kind process
python benchmarks/workers/speedup.py --kind ray
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import record  # noqa: E402

from qra_search import Proposal, Study  # noqa: E402
from qra_search.testing.scenarios import ToyEvaluator  # noqa: E402

SECONDS = 1.0


class Sleeping(ToyEvaluator):
    def evaluate(self, plan, **options):
        time.sleep(SECONDS)
        return super().evaluate(plan, **options)


def make(kind: str, workers: int):
    from qra_search.executors import ProcessExecutor, RayExecutor

    if kind == "ray":
        return RayExecutor(Sleeping, workers, cpus=0.5)
    return ProcessExecutor(Sleeping, workers)


def rate(kind: str, workers: int, evaluations: int) -> float:
    """Evaluations a second of a whole search, once the workers have their evaluators."""
    with make(kind, workers) as executor:
        plans = ToyEvaluator().space.uniform_plans()
        for future in [executor.submit(Proposal(plan)) for plan in plans[:workers]]:
            future.result()
        study = Study(ToyEvaluator(), strategy="random", evaluations=evaluations, executor=executor)
        begun = time.perf_counter()
        result = study.run()
        return sum(t.done for t in result.trials) / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["process", "ray"], default="process")
    parser.add_argument("--evaluations", type=int, default=30)
    options = parser.parse_args()
    rates = {workers: rate(options.kind, workers, options.evaluations) for workers in (1, 2)}
    record(
        "speedup",
        kind=options.kind,
        evaluations=options.evaluations,
        seconds_each=SECONDS,
        an_hour={str(w): round(3600 * r) for w, r in rates.items()},
        speedup=round(rates[2] / rates[1], 3),
    )


if __name__ == "__main__":
    main()
