"""What polish and starts of adapters add to the time of quantizing SmolLM2, beside plain error feedback.

    python benchmarks/evaluator/pieces_time.py --data DIR --rounds 2

Every way quantizes the whole model at 2, 3, 4 and 8 bits from an empty cache, in a process of its own; the ways take
turns. Ratios are of processor seconds, which a busy machine changes least. A line of `pieces_time.jsonl` is a round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peak_memory import commit

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.config import QuantizationConfig, SpaceConfig, TaskConfig, TrainingConfig

WAYS = {
    "feedback": (0, "default"),
    "polish": (2, "default"),
    "polish, start": (2, "calibrated"),
    "polish, in turn": (2, "caldera"),
}
"""Sweeps of the polish, and where adapters start."""
BITS = (2, 3, 4, 8)
RESULTS = Path(__file__).parents[1] / "results" / "pieces_time.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with gsm8k_train.jsonl")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=WAYS, help="this one, in this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.way:
        print(json.dumps(quantized(options.data, *WAYS[options.way])))
        return
    for _ in range(options.rounds):
        seconds: dict[str, dict[str, float]] = {}
        for way in WAYS:
            command = [sys.executable, __file__, "--data", options.data, "--threads", str(options.threads)]
            done = subprocess.run([*command, "--way", way], stdout=subprocess.PIPE, text=True, check=True)
            seconds[way] = json.loads(done.stdout.splitlines()[-1])
        plain = seconds["feedback"]["processor"]
        row = {"commit": commit(), "threads": options.threads, "torch": torch.__version__, "seconds": seconds}
        row["ratios"] = {way: round(found["processor"] / plain, 3) for way, found in seconds.items()}
        print(json.dumps(row), flush=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")


def quantized(data: str, polish: int, init: str) -> dict[str, float]:
    """Seconds, by the clock and of the processor, from an empty cache."""
    gptq = {"name": "reference-gptq", "polish": polish}
    with tempfile.TemporaryDirectory() as cache:
        evaluator = QuantizedLoRAEvaluator(
            "smollm2",
            TaskConfig(name="gsm8k", data=data),
            quantization=QuantizationConfig(
                backend={2: gptq, 3: gptq, 4: gptq, 8: "bitsandbytes-int8"}, embeddings=16, cache=cache
            ),
            space=SpaceConfig(bits=BITS),
            training=TrainingConfig(init=init),
        )
        start, processor = time.perf_counter(), time.process_time()
        evaluator.quantized.prepare()
        return {"clock": time.perf_counter() - start, "processor": time.process_time() - processor}


if __name__ == "__main__":
    main()
