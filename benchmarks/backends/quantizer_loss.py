"""Untuned loss of uniform plans under several quantizers, beside the unquantized model: what calibration is worth.

python benchmarks/backends/quantizer_loss.py --data DIR --out benchmarks/results/quantizer_loss.jsonl
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.config import QuantizationConfig, SpaceConfig, TaskConfig, TrainingConfig

BACKENDS = ("hqq", "reference", "reference-gptq")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="gsm8k")
    parser.add_argument("--data")
    parser.add_argument("--bits", default="2,3,4")
    parser.add_argument("--rows", type=int, default=32, help="test rows")
    parser.add_argument("--calibration", type=int, default=96, help="rows that calibrated backends see")
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quantizer_loss.jsonl"))
    options = parser.parse_args()
    bits = tuple(int(b) for b in options.bits.split(","))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    dense = None
    for backend in options.backends.split(","):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            evaluator = QuantizedLoRAEvaluator(
                options.model,
                TaskConfig(name=options.task, data=options.data),
                quantization=QuantizationConfig(backend=backend, embeddings=16, cache=folder),
                space=SpaceConfig(bits=bits, ranks=(0,)),
                training=TrainingConfig(steps=options.calibration // 8, batch_size=8, test_rows=options.rows),
            )
            seconds = time.perf_counter() - start
            if dense is None:
                evaluator.quantized.unquantize()
                dense = evaluator.workbench.held_out("test", options.rows)
            for b in bits:
                plan = evaluator.space.uniform(b, 0)
                evaluator.workbench.apply(plan, 0)
                loss = evaluator.workbench.held_out("test", options.rows)
                row = {
                    "backend": backend,
                    "bits": b,
                    "loss": round(loss, 4),
                    "unquantized_loss": round(dense, 4),
                    "searched_bytes": evaluator.space.memory_bytes(plan) - evaluator.space.fixed_bytes,
                    "quantize_all_widths_seconds": round(seconds, 1),
                    "model": options.model,
                    "task": options.task,
                    "rows": options.rows,
                }
                print(json.dumps(row), flush=True)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            evaluator.close()


if __name__ == "__main__":
    main()
