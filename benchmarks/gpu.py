"""What only a GPU can show, in one command of a few minutes: for whoever has one. Nothing is downloaded.

    python benchmarks/gpu.py --minutes 9
    python benchmarks/gpu.py --device cpu --small    # every line of it, in three minutes, without a GPU

Parts: how fast weights are dequantized; tokens a second of training beside Trainer + PEFT + bitsandbytes and beside
matrix products; a search on SmolLM2 with its final tuning; the conformance kit for every backend; a random model of 8B
through every phase, its peaks beside those foretold (45 GB of disk: the model, its bank, and what is tuned). Each part
is a process of its own: one that fails, or takes longer than its share, leaves a row that says so, and the next
begins. Rows are written as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from evaluator.peak_memory import commit
from gpu_parts.common import device_name

SHARES = {"dequantize": 0.08, "training": 0.25, "search": 0.25, "conformance": 0.2, "large": 1.0}
"""Of the time, that a part may take at most; the last gets what is left."""
RESULTS = Path("benchmarks/results/gpu.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models and few steps")
    parser.add_argument("--parts", nargs="+", choices=SHARES, default=[*SHARES])
    parser.add_argument("--model", help="of the search: a folder; default: SmolLM2 from its package")
    parser.add_argument("--backend", default="reference", help="of the large model")
    parser.add_argument("--weight-cache", default="0", help="of the large model")
    parser.add_argument("--folder", type=Path, help="of models, banks and tuned plans; default: one that is removed")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--part", choices=SHARES, help="this one, in this process")
    options = parser.parse_args()
    if options.part:
        sys.exit(run(options))
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("no GPU is visible to torch here: use --device cpu --small")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as made:
        options.folder = options.folder or Path(made)
        failed = [part for part in options.parts if not start(part, options, end)]
    sys.exit(f"failed: {', '.join(failed)}; {options.out} says why" if failed else 0)


def start(part: str, options: argparse.Namespace, end: float) -> bool:
    """Run a part in a process of its own, for as long as it may take; whether it came to its end."""
    left = min(end - time.monotonic(), SHARES[part] * 60 * options.minutes)
    if left <= 0:
        record(options, part, {"error": "no time was left"})
        return False
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--folder", str(options.folder)]
    began = time.monotonic()
    with subprocess.Popen(command) as process:
        try:
            status = process.wait(timeout=left)
        except subprocess.TimeoutExpired:
            process.kill()
            record(options, part, {"error": f"stopped after {left:.0f} s, which is all that it may take"})
            return False
    print(f"{part}: {time.monotonic() - began:.0f} s, status {status}", flush=True)
    if status not in (0, 1):  # 1: the process has recorded why
        record(options, part, {"error": f"the process ended with status {status}"})
    return status == 0


def run(options: argparse.Namespace) -> int:
    """A part in this process: 0, or 1 if it failed, which its last row then says."""
    try:
        for row in import_module(f"gpu_parts.{options.part}").rows(options):
            record(options, options.part, row)
    except Exception as error:  # whatever it is: the rows of the other parts must not be lost for it
        record(options, options.part, {"error": repr(error), "traceback": traceback.format_exc()})
        return 1
    return 0


def record(options: argparse.Namespace, part: str, row: dict[str, Any]) -> None:
    """Print a row, and append it to the results."""
    head = {"commit": commit(), "device": device_name(options.device), "torch": torch.__version__}
    head |= {"threads": torch.get_num_threads(), "small": options.small, "part": part}
    print(f"{part}: {json.dumps({k: v for k, v in row.items() if k != 'traceback'})}", flush=True)
    if "traceback" in row:
        print(row["traceback"], file=sys.stderr, flush=True)
    with options.out.open("a") as file:
        file.write(json.dumps(head | row) + "\n")
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
