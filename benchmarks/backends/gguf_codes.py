"""Untuned loss with all linears that can be of a GGML type stored so: our codes beside llama.cpp's own, same file size.

    python benchmarks/backends/width_256.py --data DIR --out MODEL
    python benchmarks/backends/gguf_codes.py --model MODEL --data DIR --out benchmarks/results/gguf_codes.jsonl

Both see the same calibration rows; llama.cpp's quantizer as its importance matrix. All rows of the model's linears are
whole blocks of 256; embeddings are left as they are. Needs llama-cpp-py-sync.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from qra_backends.ggml.types import TYPES as GGML_TYPES

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.config import QuantizationConfig, SpaceConfig, TaskConfig, TrainingConfig
from qra_search.space.space import Plan, SearchSpace

TYPES = ("Q2_K", "IQ3_XXS", "Q3_K", "IQ4_XS", "Q4_K", "Q4_0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=128, help="test rows")
    parser.add_argument("--cache", default=None, help="folder of the bank of quantized weights")
    parser.add_argument("--types", nargs="*", default=list(TYPES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gguf_codes.jsonl"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.is_file() else []
    done = {(row["type"], row["codes"]) for row in known}  # what was measured stays: the script can be begun again
    for feedback, codes in ((False, "llama.cpp"), (True, "feedback")):
        if all((kind, codes) in done for kind in options.types):
            continue
        evaluator = QuantizedLoRAEvaluator(
            options.model,
            TaskConfig(name="gsm8k", data=options.data),
            quantization=QuantizationConfig(
                backend={"name": "gguf", "types": options.types, "feedback": feedback},
                embeddings=16,
                cache=options.cache,
            ),
            space=SpaceConfig(
                bits=(*{GGML_TYPES[name].width for name in options.types}, 16), ranks=(0,), granularity="module"
            ),
            training=TrainingConfig(test_rows=options.rows),
        )
        space = evaluator.space
        dense = None
        for kind in (name for name in space.bits if name != 16 and (name, codes) not in done):
            if dense is None:
                evaluator.workbench.apply(plan(space, None), 0)
                dense = evaluator.workbench.held_out("test", options.rows)
            chosen = plan(space, kind)
            evaluator.workbench.apply(chosen, 0)
            stored = [g for g, bits in zip(space.groups, chosen.bits, strict=True) if bits == kind]
            row = {
                "type": kind,
                "codes": codes,
                "loss": round(evaluator.workbench.held_out("test", options.rows), 4),
                "unquantized_loss": round(dense, 4),
                "weights": sum(g.weights for g in stored),
                "model": Path(options.model).name,
                "bytes": sum(space.memory.weight[i, space.bits.index(kind)].item() for i in range(len(space))),
                "test_rows": options.rows,
            }
            print(json.dumps(row), flush=True)
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        evaluator.close()


def plan(space: SearchSpace, kind: str | None) -> Plan:
    """A type wherever it is allowed, and unquantized weights elsewhere; everywhere if it is None."""
    bits = tuple(kind if kind is not None and (g.bits is None or kind in g.bits) else 16 for g in space.groups)
    return Plan(bits, (0,) * len(space))


if __name__ == "__main__":
    main()
