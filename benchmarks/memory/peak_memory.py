"""Checks the estimate of training's peak memory against what a process really takes: four plans, two batch sizes.

    python -m benchmarks.memory.peak_memory --task gsm8k --data DIR

Each case is a process of its own. It first does the same with a tiny model, so that libraries are loaded; what its
resident memory then grows by, at most, until two training steps of the real model are made, is what was measured (on a
GPU the allocator's peak). Counted are pages of the process's own: weights that are mapped from files are copied first,
since pages of files that were only checked are given up when room is short. glibc is told to map blocks of 64 KiB and
more one by one: what it keeps of freed blocks is no need of the training. Task data and tokenizer, which no estimate
counts, are there before the start.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.common import RESULTS, PeakWatch, append, commit, own_pages
from qra_eval.costs.peak_memory import peak_space
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.config import QuantizationConfig, TaskConfig
from qra_search.space.space import Plan

PLANS = {"2 bits, rank 4": (2, 4), "3 bits, rank 8": (3, 8), "8 bits, rank 32": (8, 32), "mixed": (0, 0)}
BATCHES = (2, 8)
STEPS = 2
MAPPED = 64 << 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--data")
    parser.add_argument("--dtype", default="float32", help="in which the model is stored and computes")
    parser.add_argument("--backend", default="reference")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "peak_memory.jsonl")
    parser.add_argument("--one", nargs=2, metavar=("PLAN", "ROWS"), help="one case, in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options, options.one[0], int(options.one[1]))))
        return
    for rows in BATCHES:
        for plan in PLANS:
            command = [sys.executable, "-m", "benchmarks.memory.peak_memory", *sys.argv[1:], "--one", plan, str(rows)]
            found = subprocess.run(command, capture_output=True, text=True, check=False)
            if found.returncode:
                sys.exit(found.stderr)
            record = json.loads(found.stdout.splitlines()[-1])
            append(options.out, {"commit": commit(), **record})
            mib = {k: record[k] / 2**20 for k in ("estimate", "measured")}
            print(f"{plan}, {rows} rows: estimate {mib['estimate']:.0f} MiB, measured {mib['measured']:.0f} MiB, "
                  f"ratio {record['ratio']:.3f}", flush=True)  # fmt: skip


def one(options: argparse.Namespace, name: str, rows: int) -> dict:
    """Estimate and measure one case."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, MAPPED)  # M_MMAP_THRESHOLD
    data = options.data
    with tempfile.TemporaryDirectory() as folder:
        train(build("tiny", "arithmetic", None, options, rows, folder), "3 bits, rank 8")
    first = build(options.model, options.task, data, options, rows, None)
    estimate = peak_space(first.tuner).memory_bytes(plan_of(first, name))
    rows_of_task, tokenizer = first.task, first.tokenizer  # kept: data and tokenizer are there before the start
    del first
    gc.collect()
    libc.malloc_trim(0)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else own_pages()
    with PeakWatch() as watch:
        train(build(options.model, options.task, data, options, rows, None), name)
    measured = (torch.cuda.max_memory_allocated() if cuda else watch.most) - before
    assert rows_of_task is not None and tokenizer is not None
    return {
        "model": options.model,
        "dtype": options.dtype,
        "backend": options.backend,
        "task": options.task,
        "checkpointing": options.checkpointing,
        "plan": name,
        "rows": rows,
        "device": "cuda" if cuda else "cpu",
        "estimate": estimate,
        "measured": measured,
        "ratio": estimate / measured,
    }


def build(
    model: str, task: str, data: str | None, options: argparse.Namespace, rows: int, cache: str | None
) -> QuantizedLoRAEvaluator:
    """An evaluator that keeps no dequantized weights, as under a budget on the peak."""
    return QuantizedLoRAEvaluator(
        model,
        TaskConfig(name=task, data=data),
        quantization=QuantizationConfig(backend=options.backend, embeddings=16, cache=cache),
        training={"batch_size": rows, "gradient_checkpointing": options.checkpointing},
        evaluation={"steps": STEPS},
        dtype=options.dtype,
        dequantized_cache=0,
    )


def plan_of(evaluator: QuantizedLoRAEvaluator, name: str) -> Plan:
    """A named plan: uniform, or every choice of the space in turn."""
    space, (bits, rank) = evaluator.space, PLANS[name]
    if bits:
        return Plan((bits,) * len(space), (rank,) * len(space))
    n = range(len(space))
    return Plan(tuple(space.bits[i % len(space.bits)] for i in n), tuple(space.ranks[i % len(space.ranks)] for i in n))


def train(evaluator: QuantizedLoRAEvaluator, name: str) -> None:
    """Two training steps of a plan."""
    evaluator.tuner.apply(plan_of(evaluator, name), 0)
    evaluator.tuner.model._apply(torch.clone)
    evaluator.tuner.train(STEPS, 0)


if __name__ == "__main__":
    main()
