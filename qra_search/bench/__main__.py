"""The benchmark from the command line: `python -m qra_search.bench --preset quick --out OUT`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from qra_search.bench.run import run_benchmark
from qra_search.bench.tables import make_tables
from qra_search.bench.tasks import PRESETS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run (or go on with) a benchmark and make its tables; 0 where all is done, 3 where cells are left for later."""
    parser = argparse.ArgumentParser(prog="python -m qra_search.bench", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder of raw.jsonl and the tables")
    parser.add_argument(
        "--preset", default="quick", choices=list(PRESETS), help="tasks, strategies, seeds, evaluations"
    )
    parser.add_argument(
        "--tasks", nargs="+", help="FAMILY-LAYERS-GRANULARITY-PRIOR or recorded:LOG, instead of the preset's"
    )
    parser.add_argument("--only", help="regular expression: only the tasks that match it")
    parser.add_argument(
        "--strategies", nargs="+", help="NAME, NAME:ARGUMENT or NAME?OPTION=VALUE, instead of the preset's"
    )
    parser.add_argument("--seeds", help="so many, or FIRST-LAST, instead of the preset's")
    parser.add_argument("--evaluations", type=float, help="full evaluations of a search, instead of the preset's")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument(
        "--minutes", type=float, help="begin no cell after so long; the same command goes on from there"
    )
    parser.add_argument(
        "--cell-seconds", type=float, help="processor seconds after which a search is cut short, noted in its row"
    )
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    left = 0
    if not options.tables_only:
        tasks = [t for t in options.tasks or preset.tasks if re.search(options.only or "", t)]
        progress = run_benchmark(
            tasks,
            options.strategies or preset.strategies,
            seeds_of(options.seeds) if options.seeds else preset.seeds,
            options.evaluations or preset.evaluations,
            options.out,
            options.workers,
            minutes=options.minutes,
            cell_seconds=options.cell_seconds,
            tell=print,
        )
        left = progress.remaining
        print(f"{progress.ran} cells run, {progress.failed} failed, {progress.skipped} were there, {left} left")
    make_tables(options.out)
    print(f"tables: {options.out / 'tables.md'}, plots: {options.out / 'anytime.svg'}")
    return 3 if left else 0


def seeds_of(text: str) -> list[int]:
    """Seeds from `20` (0 to 19) or `5-9` (5, 6, 7, 8, 9).

    >>> seeds_of("3"), seeds_of("5-7")
    ([0, 1, 2], [5, 6, 7])
    """
    first, dash, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else list(range(int(first)))


if __name__ == "__main__":
    sys.exit(main())
