"""Flips, cuts off at, and cuts out every single byte of a log in turn, and counts what that did.

    python -m benchmarks.robustness.workers.damage --trials 20

A flipped or missing byte is refused, or the log reads the same, or a figure of a result differs (a digit cannot be told
from another without a checksum): no result is lost, none is of another plan. A log that ends early, its last line
without an end included, is the log as it was earlier.
"""

from __future__ import annotations

import argparse
import bisect
import tempfile
import time
from pathlib import Path

from benchmarks.robustness.workers.common import record
from qra_search import search
from qra_search.log.journal import JournalContents, LogError, parse_journal
from qra_search.testing.scenarios import ToyEvaluator, make_toy_space


def written(trials: int) -> bytes:
    """A log of so many trials."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        search(ToyEvaluator(make_toy_space(8)), strategy="random", evaluations=trials, seed=1, log=log)
        return log.read_bytes()


class Tally:
    """Outcomes of one kind of damage."""

    def __init__(self, truth: JournalContents):
        self.truth = truth
        self.counts = {"bytes": 0, "refused": 0, "read": 0, "figures": 0, "faults": 0}

    def judge(self, content: bytes, begun: int) -> None:
        """Read a damaged log, and compare it with what was written.

        Args:
            begun: lines that are whole before the damage, if the log ends there.
        """
        self.counts["bytes"] += 1
        try:
            found = parse_journal(content)
        except LogError:
            self.counts["refused"] += 1
            return
        truth = self.truth.trials[: len(found.trials)]
        same = [t.plan == known.plan for t, known in zip(found.trials, truth, strict=True)]
        lost = sum(t.status == "done" for t in self.truth.trials) - sum(
            t.status == "done" for t in found.trials
        )
        self.counts["faults"] += not all(same) or lost > begun
        self.counts["read" if found.trials == self.truth.trials else "figures"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20)
    options = parser.parse_args()
    content = written(options.trials)
    truth = parse_journal(content)
    assert len(truth.trials) == options.trials
    flipped, removed, truncated = Tally(truth), Tally(truth), Tally(truth)
    ends = [at for at, byte in enumerate(content) if byte == 10]
    results = [b'"status"' in line for line in content.splitlines()]
    begun = time.process_time()
    for at in range(len(content)):
        data = bytearray(content)
        data[at] ^= 1 << at % 8
        last = int(at == len(content) - 1)
        flipped.judge(bytes(data), last)
        removed.judge(content[:at] + content[at + 1 :], last)
        truncated.judge(content[:at], sum(results[bisect.bisect_left(ends, at) :]))
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
