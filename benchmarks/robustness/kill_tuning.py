"""A full tuning killed with SIGKILL again and again, and resumed each time: the same as one that nobody disturbed?

    python -m benchmarks.robustness.kill_tuning --kills 20

One tuning (dropout, accumulated batches, validation losses on the way) is killed at so many random steps. Adapters and
curve are compared, bit by bit, with those of one that was not. Writes a line of benchmarks/results/tuning.jsonl.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.common import RESULTS, append_lines, find_commit
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator

CACHE = "bank"
FORK = multiprocessing.get_context("fork")
"""A child begins with everything imported: 20 kills take a minute, not ten."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0, help="of the steps that are killed")
    parser.add_argument("--out", type=Path, default=RESULTS / "tuning.jsonl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = kill(options, Path(folder))
    row = {
        "what": "kill",
        "commit": find_commit(),
        "model": options.model,
        "threads": torch.get_num_threads(),
        **row,
    }
    print(json.dumps(row, indent=1))
    append_lines(options.out, row)
    raise SystemExit(0 if row["weights_equal_to_the_bit"] and row["curves_equal"] else 1)


def kill(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kills a tuning at random steps, and compares where it ends with one that was not."""
    draw = random.Random(options.seed)
    run(options, folder / "whole", None)
    at = []
    for step in sorted(draw.randrange(1, options.steps) for _ in range(options.kills)):
        at.append(run(options, folder / "broken", step))
    run(options, folder / "broken", None)
    one, two = (
        load_file(folder / name / "adapter/adapter_model.safetensors") for name in ("whole", "broken")
    )
    same = one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    curves = [(folder / name / "curve.jsonl").read_text() for name in ("whole", "broken")]
    return {
        "steps": options.steps,
        "kills": len(at),
        "killed_after_steps": at,
        "tensors": len(one),
        "weights_equal_to_the_bit": same,
        "curves_equal": curves[0] == curves[1],
    }


def run(options: argparse.Namespace, folder: Path, kill_at: int | None) -> int:
    """Tune in a process of its own, which is killed once the curve has so many steps; returns the steps it had."""
    process = FORK.Process(target=tune, args=(options, folder))
    process.start()
    while process.is_alive():
        if kill_at is not None and done(folder) >= kill_at:
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
            break
        time.sleep(0.001)
    process.join()
    if kill_at is None and process.exitcode != 0:
        raise SystemExit(f"the tuning failed with status {process.exitcode}")
    return done(folder)


def done(folder: Path) -> int:
    path = folder / "curve.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def tune(options: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(1)
    evaluator = QuantizedLoRAEvaluator(
        {
            "model": {"name": options.model},
            "task": {"name": options.task},
            "quantization": {"backend": "reference", "cache": str(folder.parent / CACHE)},
            "space": {"bits": (2, 4), "ranks": (4, 8), "granularity": "layer"},
            "training": {
                "batch_size": 2,
                "accumulation": 2,
                "dropout": 0.1,
                "weight_decay": 0.01,
                "max_length": 96,
            },
            "evaluation": {"validation_rows": 8},
            "finetune": {"evaluate_every": 7, "checkpoint_minutes": 0, "test_rows": 8},
        }
    )
    plan = evaluator.space.uniform(4, 8)
    evaluator.tune(plan, seed=1, steps=options.steps, folder=folder)


if __name__ == "__main__":
    main()
