"""Kills short searches at random moments, many times, and counts results that were lost or that counted twice.

    python -m benchmarks.robustness.workers.kills --kills 500 --workers 2

In pieces: fewer kills each, every piece with a `--seed` of its own; the pieces add up.

A search is killed with SIGKILL after a random time, resumed, killed again, and so on until it ends. Before every
kill it has told, one line each, which results were recorded. At its end the log must hold each of these once, and be
the log of a search that was never killed. The search runs in batches, in this process or in worker processes; with
`--fork` these are forked, which starts them ten times as fast, and gives them copies of whatever the search has open.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.robustness.workers.common import record
from qra_search import Callback, TrialLog, search
from qra_search.executors import ProcessExecutor
from qra_search.executors import workers as processes
from qra_search.testing.scenarios import ToyEvaluator

OPTIONS = {"strategy": "random", "evaluations": 16, "batch": 3, "seed": 2}


class Sleeping(ToyEvaluator):
    """Long enough that a kill may fall into an evaluation."""

    def evaluate(self, plan, **options):
        time.sleep(0.003)
        return super().evaluate(plan, **options)


class Tell(Callback):
    def __init__(self, pipe: int):
        self.pipe = pipe

    def on_result(self, study, trial):
        os.write(self.pipe, f"{trial.id} {trial.loss!r}\n".encode())


def life(log: Path, pipe: int, workers: int, fork: bool) -> None:
    """One life of the search, in a forked child."""
    if fork:
        context = multiprocessing.get_context("fork")
        processes.multiprocessing.get_context = lambda method: context
    if workers:
        with ProcessExecutor(Sleeping, workers) as executor:
            search(Sleeping(), **OPTIONS, log=log, executor=executor, callbacks=[Tell(pipe)])
    else:
        search(Sleeping(), **OPTIONS, log=log, callbacks=[Tell(pipe)])


def one_search(folder: Path, rng: random.Random, workers: int, fork: bool) -> dict[str, int]:
    """Lives until the search has ended; returns what went wrong.

    A life is killed some milliseconds after it told of a random number of results, none included.
    """
    log = folder / "log"
    told: dict[int, str] = {}
    counts = {"kills": 0, "twice": 0, "lost": 0, "refused": 0}
    while True:
        read, write = os.pipe()
        child = multiprocessing.get_context("fork").Process(target=life, args=(log, write, workers, fork))
        child.start()
        os.close(write)
        wanted, got, killed = rng.randint(0, 5), 0, False
        with open(read) as lines:
            while True:
                if got == wanted and not killed:
                    time.sleep(rng.random() * (0.01 if got else 0.05))
                    killed = child.is_alive()
                    if killed:
                        os.kill(child.pid, signal.SIGKILL)
                        counts["kills"] += 1
                line = lines.readline()
                if not line.endswith("\n"):
                    break
                got += 1
                number, loss = line.split()
                counts["twice"] += int(number) in told
                told[int(number)] = loss
        child.join()
        if not killed:
            counts["refused"] += child.exitcode != 0
            break
    with TrialLog(log) as after:
        recorded = {t.id: repr(t.loss) for t in after if t.done}
        facts = [(t.proposal, t.status, t.loss) for t in after]
    counts["lost"] = sum(recorded.get(number) != loss for number, loss in told.items())
    counts["differs"] = int(facts != [(t.proposal, t.status, t.loss) for t in unbroken()])
    return counts


_unbroken: list = []


def unbroken() -> tuple:
    if not _unbroken:
        _unbroken.append(search(Sleeping(), **OPTIONS).trials)
    return _unbroken[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="end earlier, with the kills done by then"
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="worker processes; 0: in the search's own process"
    )
    parser.add_argument("--fork", action="store_true", help="fork the worker processes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, searches = random.Random(options.seed), 0
    total: dict[str, int] = {}
    unbroken()
    ends = time.monotonic() + 60 * options.minutes
    while total.get("kills", 0) < options.kills and time.monotonic() < ends:
        with tempfile.TemporaryDirectory() as folder:
            counts = one_search(Path(folder), rng, options.workers, options.fork)
        searches += 1
        total = {key: total.get(key, 0) + value for key, value in counts.items()}
        print(searches, total, file=sys.stderr, flush=True)
    record(
        "kills",
        workers=options.workers,
        start="fork" if options.fork else "spawn",
        seed=options.seed,
        searches=searches,
        trials_each=len(unbroken()),
        **total,
    )


if __name__ == "__main__":
    main()
