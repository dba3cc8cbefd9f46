"""Whether two runs of the benchmark have the same rows, all but times, to twelve digits: machines differ in the last.

python -m benchmarks.strategies.same_rows OLD/raw.jsonl NEW/raw.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DIGITS = 12
TIMES = ("seconds", "environment")
"""What is in the name of a field that may differ: times, and where the row was made."""
GONE = (
    "complete",
    "prior_rank_correlation",
    "replicates",
    "low_fidelity",
    "proposals",
    "coverage_90",
)
"""Fields that older rows have: whether a search was cut short, how well the sensitivities ranked random plans, counts
of trials by kind, and how often intervals held the truth."""


def rows(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Rows by task, strategy and seed, without their times."""
    found = map(json.loads, path.read_text().splitlines())
    return {(r["task"], r["strategy"], r["seed"]): timeless(r) for r in found}


def timeless(value: Any) -> Any:
    """A value without the fields whose names speak of time, and without those that are gone; floats of `DIGITS`."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in GONE and not any(word in k for word in TIMES)}
        return {k: timeless(v) for k, v in kept.items()}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def main(old: str, new: str) -> int:
    before, after = rows(Path(old)), rows(Path(new))
    missing = sorted(before.keys() ^ after.keys())
    differing = [key for key in sorted(before.keys() & after.keys()) if before[key] != after[key]]
    for key in missing:
        print("only in one:", *key)
    for key in differing:
        fields = [f for f in before[key] if before[key].get(f) != after[key].get(f)]
        print("differs:", *key, "in", ", ".join(fields))
    print(
        f"{len(before.keys() & after.keys()) - len(differing)} of {len(before)} rows are the same to {DIGITS} digits"
    )
    return 1 if missing or differing else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
