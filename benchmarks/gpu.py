"""What only a GPU can show, in pieces of a few minutes: for whoever has one. Nothing is downloaded.

    python -m benchmarks.gpu --folder DIR --minutes 9       # again, until it says that all is done
    python -m benchmarks.gpu --device cpu --small           # every line of it, in a few minutes, without a GPU
    PYTHONPATH=tests python -m benchmarks.gpu --pretended --small      # the same, as if on a GPU

Parts: how fast weights are dequantized; tokens a second of training beside Trainer + PEFT + bitsandbytes and beside
matrix products; a search on SmolLM2 with its final tuning; the conformance kit for every backend; a random model of 8B
through every phase, its peaks beside those foretold (45 GB of disk: the model, its quantized weights, and what is
tuned). Each part is a process of its own: one that fails, or takes longer than its share, leaves a row that says so,
and the next begins. Rows are written as they come. With the same `--folder`, `--out` and commit, parts that ended are
not run again, and the kit and the 8B model go on where they were.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, append_lines, find_commit, read_lines
from benchmarks.gpu_parts.common import device_name

SHARES = {"dequantize": 0.2, "training": 0.35, "search": 0.35, "conformance": 0.35, "large": 1.0}
"""Of the time of a call, that a part may take at most."""
ENDED = {"ended": True}
"""The last row of a part that came to its end."""
LEFT = 3
"""Exit status if something is left to be done."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models and few steps")
    parser.add_argument(
        "--pretended", action="store_true", help="a GPU that is not there: see tests/pretended_gpu.py"
    )
    parser.add_argument("--parts", nargs="+", choices=SHARES, default=[*SHARES])
    parser.add_argument("--model", help="of the search: a folder; default: SmolLM2 from its package")
    parser.add_argument("--backend", default="reference", help="of the large model")
    parser.add_argument("--dequantized-cache", default="0", help="of the large model")
    parser.add_argument(
        "--folder", type=Path, help="of models, quantized weights and tuned plans; default: a temporary"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.jsonl")
    parser.add_argument("--part", choices=SHARES, help="this one, in this process")
    options = parser.parse_args()
    if options.part:
        sys.exit(run(options))
    if options.device.startswith("cuda") and not (options.pretended or torch.cuda.is_available()):
        sys.exit("no GPU is visible to torch here: use --device cpu --small")
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as made:
        options.folder = options.folder or Path(made)
        left = [part for part in options.parts if not ended(options, part) and not start(part, options, end)]
    if left:
        print(
            f"left or failed: {', '.join(left)}; {options.out} says why. Run this again with the same --folder"
        )
        sys.exit(LEFT)
    print("all is done")


def start(part: str, options: argparse.Namespace, end: float) -> bool:
    """Run a part in a process of its own, for as long as it may take; whether it came to its end."""
    seconds = min(end - time.monotonic(), SHARES[part] * 60 * options.minutes)
    if seconds <= 0:
        return False
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        *sys.argv[1:],
        "--part",
        part,
        "--folder",
        str(options.folder),
    ]
    began = time.monotonic()
    with subprocess.Popen(command) as process:
        try:
            status = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            record(options, part, {"error": f"stopped after {seconds:.0f} s, which is all that it may take"})
            return False
    print(f"{part}: {time.monotonic() - began:.0f} s, status {status}", flush=True)
    if status not in (0, 1):  # 1: the process has recorded why
        record(options, part, {"error": f"the process ended with status {status}"})
    return status == 0


def run(options: argparse.Namespace) -> int:
    """A part in this process: 0, or 1 if it failed, which its last row then says."""
    with import_module("pretended_gpu").pretended_gpu() if options.pretended else nullcontext():
        return run_here(options)


def run_here(options: argparse.Namespace) -> int:
    options.known = known(options, options.part)
    try:
        for row in import_module(f"benchmarks.gpu_parts.{options.part}").rows(options):
            record(options, options.part, row)
    except Exception as error:  # whatever it is: the rows of the other parts must not be lost for it
        record(options, options.part, {"error": repr(error), "traceback": traceback.format_exc()})
        return 1
    record(options, options.part, ENDED)
    return 0


def head(options: argparse.Namespace, part: str) -> dict[str, Any]:
    """What all rows of a part say that are measured alike."""
    name = "pretended" if options.pretended else device_name(options.device)
    made = {"commit": find_commit(), "device": name, "torch": torch.__version__}
    made |= {"threads": torch.get_num_threads(), "small": options.small, "part": part}
    return made | ({"folder": str(options.folder)} if part == "large" else {})


def known(options: argparse.Namespace, part: str) -> list[dict[str, Any]]:
    """The rows of a part that are there, but for errors."""
    mine = head(options, part)
    return [row for row in read_lines(options.out) if mine.items() <= row.items() and "error" not in row]


def ended(options: argparse.Namespace, part: str) -> bool:
    """Whether an earlier call came to the part's end."""
    return any(ENDED.items() <= row.items() for row in known(options, part))


def record(options: argparse.Namespace, part: str, row: dict[str, Any]) -> None:
    """Print a row, and append it to the results."""
    print(f"{part}: {json.dumps({k: v for k, v in row.items() if k != 'traceback'})}", flush=True)
    if "traceback" in row:
        print(row["traceback"], file=sys.stderr, flush=True)
    append_lines(options.out, head(options, part) | row)


if __name__ == "__main__":
    main()
