"""The demo's plan, its best uniform rival, itself shuffled, and 16-bit LoRA, over seeds; resumable.

    python -m benchmarks.demo --out FOLDER --seeds 3

Each tuning is a line of `results/demo.jsonl`; settings and plans are those of `qra demo`. `--table` prints the lines.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import MIB, RESULTS, append_lines, find_commit, read_lines
from benchmarks.study.intervals import make_markdown_table
from qra_search.app.cli.demo import DEMO_SETTINGS
from qra_search.app.config import make_config
from qra_search.app.run import Run

PATH = RESULTS / "demo.jsonl"
KEY = {
    "command": "benchmarks.demo",
    "settings": zlib.crc32(json.dumps(DEMO_SETTINGS, sort_keys=True).encode()),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo-seeds"), help="folder of the run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--table", action="store_true", help="print the lines that there are, and measure nothing"
    )
    options = parser.parse_args()
    if not options.table:
        measure(options.out, options.seeds)
    print(*make_table([line for line in read_lines(PATH) if KEY.items() <= line.items()]), sep="\n")


def measure(out: Path, seeds: int) -> None:
    """Tune what the run lacks, and append the lines that are not there yet."""
    with Run(out, make_config(DEMO_SETTINGS)) as run:
        run.make_plan(progress=True)
        run.finetune(seeds=seeds, with_16_bit=True, progress=True)
        comparison = run.finetune(seeds=seeds, against="shuffled", progress=True)
    known = {line.get("id") for line in read_lines(PATH)}
    for tuned in comparison.tunings:
        for record in tuned.records:
            if record.id not in known:
                scores = record.row_scores["exact_match"]
                append_lines(
                    PATH,
                    {
                        **KEY,
                        "id": record.id,
                        "role": tuned.role,
                        "seed": record.seed,
                        "steps": record.steps,
                        "memory_bytes": record.memory_bytes,
                        "test_loss": round(record.test_loss, 4),
                        "right": float(np.mean(scores)),
                        "scored": len(scores),
                        "seconds": round(record.seconds, 1),
                        "commit": find_commit(),
                    },
                )


def make_table(lines: list[dict[str, Any]]) -> list[str]:
    """Test loss and right answers of each plan, seed by seed."""
    body = []
    for role in dict.fromkeys(line["role"] for line in lines):
        some = [line for line in lines if line["role"] == role]
        right = [line["right"] for line in some]
        cells = [
            role,
            f"{some[0]['memory_bytes'] / MIB:.1f}",
            f"{np.mean([line['test_loss'] for line in some]):.4f}",
        ]
        body.append([*cells, f"{np.mean(right):.1%}", " ".join(f"{share:.0%}" for share in right)])
    return make_markdown_table(["plan", "MiB", "test loss", "right answers", "by seed"], body)


if __name__ == "__main__":
    main()
