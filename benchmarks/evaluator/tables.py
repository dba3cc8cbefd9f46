"""What a model loses if its embeddings and head alone are quantized, calibrated and rounded to nearest, at each width.

    python benchmarks/evaluator/tables.py --model smollm2 --task gsm8k --data DIR

Nothing is tuned. The divergence is that of the prior (8 calibration rows, float32); the loss is on validation rows.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from commit import commit

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.sensitivities.cache import PRIOR_ROWS, probe_batch
from qra_eval.sensitivities.measure import degrade_tables

RESULTS = Path(__file__).parents[1] / "results" / "tables.jsonl"
NARROW = (2, 3, 4, 5, 6)
BACKENDS = {
    "calibrated, 8: a scale a row": {**dict.fromkeys(NARROW, "reference-gptq"), 8: "bitsandbytes-int8"},
    "rounded": dict.fromkeys((*NARROW, 8), {"name": "reference", "ranges": "mse"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--data")
    parser.add_argument("--rows", type=int, default=64, help="of validation")
    parser.add_argument("--cache", help="folder of the bank")
    options = parser.parse_args()
    for backend in BACKENDS:
        for row in measured(options, backend):
            print(json.dumps(row), flush=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")


def measured(options: argparse.Namespace, backend: str) -> list[dict[str, object]]:
    """A row for each width; the linears, which stay as they are, are in the bank at 8 bits."""
    evaluator = QuantizedLoRAEvaluator(
        options.model,
        {"name": options.task, "data": options.data},
        quantization={"backend": BACKENDS[backend], "embeddings": [*NARROW, 8], "cache": options.cache},
        space={"bits": [8]},
    )
    model, space = evaluator.quantized, evaluator.space
    start = time.perf_counter()
    model.prepare()
    prepared = time.perf_counter() - start
    with model.in_float32() as blocks:
        kl, _ = degrade_tables(evaluator.workbench, blocks, probe_batch(evaluator.rows("calibration", PRIOR_ROWS)))
    before = evaluator.untuned_loss()
    rows = []
    for b in model.table_levels:
        for name in model.tables:
            model.put_table(name, b)
        with model.blocks.streamed():
            loss = evaluator.workbench.held_out("validation", options.rows)
        for name in model.tables:
            model.put_table(name, None)
        tables = [group for group in space.groups if group.is_embedding]
        size = sum(model.backend.storage(b).bytes(t.out_features, t.in_features) for g in tables for t in g.linears)
        rows.append({
            "model": options.model, "task": options.task, "backend": backend, "bits": b, "bytes": size,
            "kl": {name: figures[b] for name, figures in kl.items()}, "loss": loss, "loss_as_loaded": before,
            "prepared_seconds": round(prepared, 1), "commit": commit(),
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
