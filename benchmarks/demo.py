"""Right answers of the demo's plan, its best uniform rival and 16-bit LoRA, over seeds; resumable.

    python -m benchmarks.demo --out FOLDER --seeds 3

Each tuning is a line of `results/demo.jsonl`; settings and plans are those of `qra demo`. `--table` prints the lines.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import MIB, RESULTS, append_lines, find_commit, read_lines
from benchmarks.study.intervals import make_markdown_table
from qra_search.cli.demo import DEMO
from qra_search.config import make_config
from qra_search.runs.baselines import select_baselines
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.workflow.run import Run

PATH = RESULTS / "demo.jsonl"
COMMAND = "benchmarks.demo"
SETTINGS = zlib.crc32(json.dumps(DEMO, sort_keys=True).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo-seeds"), help="folder of the run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print what is there, and measure nothing")
    options = parser.parse_args()
    if not options.table:
        measure(options.out, options.seeds)
    print(*table([d for d in read_lines(PATH) if d.get("settings") == SETTINGS]), sep="\n")


def measure(out: Path, seeds: int) -> None:
    """Tune what is not among the lines yet."""
    with Run(out, make_config(DEMO)) as run:
        start = time.process_time()
        result = run.choose_plan(progress=True)
        planned = time.process_time() - start
        space, evaluator = result.space, run.evaluator()
        limit = space.memory_bytes(run.plan)
        plans = {"found": run.plan, "uniform": select_baselines(space, run.plan, limit, "best", result)[0]}
        sixteen = space.unquantized.uniform(UNQUANTIZED_BITS, space.ranks[-1])
        assert sixteen is not None  # it is all that this space has
        for seed in range(seeds):
            for role, plan in (plans | {"16-bit": sixteen}).items():
                key = {"command": COMMAND, "settings": SETTINGS, "role": role, "seed": seed}
                if any(key.items() <= line.items() for line in read_lines(PATH)):
                    continue
                start = time.process_time()
                tuned = evaluator.tune(plan, seed=seed)
                line: dict[str, Any] = {**key, "steps": tuned.steps, "memory_bytes": space.of(plan).memory_bytes(plan)}
                line |= {"test_loss": round(tuned.test_loss, 4), "right": tuned.metrics["exact_match"]}
                line |= {"scored": len(tuned.row_scores["exact_match"])}
                line |= {"processor_seconds": round(time.process_time() - start, 1)}
                append_lines(PATH, line | {"planning_processor_seconds": round(planned, 1), "commit": find_commit()})
                print(f"seed {seed}, {role}: {tuned.test_loss:.4f}, {line['right']:.1%} right", flush=True)


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Test loss and right answers of each plan, seed by seed."""
    body = []
    for role in dict.fromkeys(d["role"] for d in lines):
        some = [d for d in lines if d["role"] == role]
        right = [d["right"] for d in some]
        cells = [role, f"{some[0]['memory_bytes'] / MIB:.1f}", f"{np.mean([d['test_loss'] for d in some]):.4f}"]
        body.append([*cells, f"{np.mean(right):.1%}", " ".join(f"{share:.0%}" for share in right)])
    return make_markdown_table(["plan", "MiB", "test loss", "right answers", "by seed"], body)


if __name__ == "__main__":
    main()
