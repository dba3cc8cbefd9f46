"""Flips, cuts off at, and cuts out every single byte of a log in turn, and counts what that did.

    python -m benchmarks.robustness.workers.damage --trials 200

Each proposal and each result is a line of its own. So a flipped or missing byte is named, and costs at most one trial
its result or its proposal; two trials if the byte is the end between two lines. A log that ends early, its last line
without an end included, is the log as it was earlier. All else that is read must be what was written. Lines that are as
they were are decoded once and remembered (`remember`): without that, reading some 250,000 logs would take half an hour.
"""

from __future__ import annotations

import argparse
import bisect
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson

from benchmarks.robustness.workers.common import record
from qra_search import search
from qra_search.log import lines
from qra_search.log.journal import LogContents, LogError, read_log
from qra_search.testing.scenarios import ToyEvaluator, make_toy_space


def written(trials: int) -> bytes:
    """A log of so many trials."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        search(ToyEvaluator(make_toy_space(8)), strategy="random", evaluations=trials, seed=1, log=log)
        return log.read_bytes()


def remember() -> None:
    """Let the reader keep what it made of each line; every line is still looked at in every log."""
    lines.is_intact = lru_cache(100_000)(lines.is_intact)
    lines.orjson = SimpleNamespace(loads=lru_cache(100_000)(orjson.loads))
    for name in ("_read_proposal", "_read_result"):
        setattr(lines, name, by_identity(getattr(lines, name)))


def by_identity(make: Callable[..., Any]) -> Callable[..., Any]:
    """A function that remembers its result by which objects it was given; these are kept."""
    known: dict[tuple[int, ...], tuple[Any, ...]] = {}

    def remembered(*given: Any) -> Any:
        key = tuple(map(id, given))
        if key not in known:
            known[key] = make(*given), given
        return known[key][0]

    return remembered


class Tally:
    """Outcomes of one kind of damage."""

    def __init__(self, truth: LogContents):
        self.truth = truth
        self.counts = {"bytes": 0, "named": 0, "refused": 0, "harmless": 0, "faults": 0}

    def judge(self, content: bytes, most_lost: int, *, ends_early: bool = False) -> None:
        """Read a damaged log, and compare it with what was written: what is lost is named, but for its end."""
        self.counts["bytes"] += 1
        try:
            found = read_log(content)
        except LogError:
            self.counts["refused"] += 1  # in one line, as damage of a log's only header is
            return
        lost = 0
        for number, trial in self.truth.trials.items():
            known = found.trials.get(number)
            if known is not trial and known != trial:
                lost += 1
                self.counts["faults"] += known is not None and (
                    known.status != "running" or known.proposal != trial.proposal
                )
        self.counts["faults"] += len(found.trials.keys() - self.truth.trials.keys())
        self.counts["faults"] += lost > most_lost
        self.counts["faults"] += bool(lost and not found.damage and not ends_early)
        self.counts["named" if found.damage else "harmless"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=200)
    options = parser.parse_args()
    content = written(options.trials)
    remember()
    truth = read_log(content)
    assert len(truth.trials) == options.trials and not truth.damage
    flipped, removed, truncated = Tally(truth), Tally(truth), Tally(truth)
    ends = [at for at, byte in enumerate(content) if byte == 10]
    results = [b'"status"' in line for line in content.splitlines()]
    begun = time.process_time()
    for at in range(len(content)):
        data = bytearray(content)
        data[at] ^= 1 << at % 8
        most, last = 1 + (content[at] == 10), at == len(content) - 1
        flipped.judge(bytes(data), most, ends_early=last)
        removed.judge(content[:at] + content[at + 1 :], most, ends_early=last)
        whole = bisect.bisect_left(ends, at)  # lines whose end is left
        truncated.judge(content[:at], sum(results[whole:]), ends_early=True)
    record(
        "damage",
        trials=options.trials,
        log_bytes=len(content),
        flipped=flipped.counts,
        removed=removed.counts,
        truncated=truncated.counts,
        cpu_seconds=round(time.process_time() - begun, 1),
    )


if __name__ == "__main__":
    main()
