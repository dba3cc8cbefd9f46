"""Size and opening time of a long log, and what a proposal and a result cost in it.

python benchmarks/workers/log.py --trials 10000 --layers 80
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import record  # noqa: E402

from qra_search import Evaluation, Plan, Proposal, TrialLog  # noqa: E402

MODULES = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=80, help="of seven modules each")
    options = parser.parse_args()
    rng, groups = np.random.default_rng(0), options.layers * MODULES
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        begun = time.perf_counter()
        with TrialLog(path) as log:
            for number in range(options.trials):
                bits, ranks = rng.choice((2, 3, 4, 8), groups), rng.choice((4, 8, 16, 32), groups)
                plan = Plan(tuple(bits.tolist()), tuple(ranks.tolist()))
                log.propose(Proposal(plan, seed=0, origin="table", predicted_loss=1.0, predicted_std=0.1))
                log.finish(number, Evaluation(1.0 + number * 1e-5, 10**9, {"accuracy": 0.5}, seconds=60.0))
        written = time.perf_counter() - begun
        wall, cpu = [], []
        for _ in range(5):
            begun, begun_cpu = time.perf_counter(), time.process_time()
            with TrialLog(path) as log:
                assert len(log) == options.trials
            wall.append(time.perf_counter() - begun)
            cpu.append(time.process_time() - begun_cpu)
        record(
            "log",
            trials=options.trials,
            groups=groups,
            mebibytes=round(path.stat().st_size / 2**20, 1),
            open_seconds=round(min(wall), 3),
            open_cpu_seconds=round(min(cpu), 3),
            write_ms_a_trial=round(1000 * written / options.trials, 2),
        )


if __name__ == "__main__":
    main()
