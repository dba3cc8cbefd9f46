"""What bank and prior of SmolLM2 take at the least: their matrix products, at the rate of bare ones on this machine.

    python benchmarks/evaluator/setup_floor.py --data DIR

The products of torch's that one thread asks for are counted while the bank is made, without polish, and the prior is
measured, from an empty cache: those of each dtype. Error feedback, which runs in threads of its own, is left out of the
count. Beside them is the rate of bare products of the model's shapes in these dtypes, the best of before and after. A
line of `setup_floor.jsonl` is a run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peak_memory import commit
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.config import QuantizationConfig, SpaceConfig, TaskConfig

RESULTS = Path(__file__).parents[1] / "results" / "setup_floor.jsonl"
SHAPES = ((1024, 576, 1536), (1024, 1536, 576), (1024, 576, 576))
"""Tokens, inputs and outputs of the model's linears."""
DTYPES = (torch.float32, torch.bfloat16)
RATE_SECONDS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with gsm8k_train.jsonl")
    options = parser.parse_args()
    gptq = {"name": "reference-gptq", "polish": 0}
    with tempfile.TemporaryDirectory() as cache:
        evaluator = QuantizedLoRAEvaluator(
            "smollm2",
            TaskConfig(name="gsm8k", data=options.data),
            quantization=QuantizationConfig(
                backend={2: gptq, 3: gptq, 4: gptq, 8: "reference"}, embeddings=16, cache=cache
            ),
            space=SpaceConfig(bits=(2, 3, 4, 8)),
        )
        rates, phases = [measured_rates()], {}
        for name, work in (("quantize", evaluator.quantized.prepare), ("prior", evaluator.prior)):
            start = time.perf_counter()
            with Operations() as counted:
                work()
            phases[name] = {"seconds": time.perf_counter() - start, "operations": dict(counted.total)}
            rates.append(measured_rates())
    best = {dtype: max(found[dtype] for found in rates) for dtype in rates[0]}
    row: dict[str, Any] = {"commit": commit(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    row |= {"compute": str(evaluator.quantized.compute), "rates": best, "phases": phases}
    row["floor_seconds"] = {
        name: sum(count / best[dtype] for dtype, count in found["operations"].items()) for name, found in phases.items()
    }
    print(json.dumps(row, indent=1))
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


class Operations(TorchDispatchMode):
    """Counts those of matrix products. torch's FlopCounterMode also follows modules, which `autograd.grad` forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total[str(args[1].dtype)] += count(*args, **(kwargs or {}), out_val=out)
        return out


def measured_rates() -> dict[str, float]:
    """Operations a second of bare products by dtype, the best of several."""
    best = {str(dtype): 0.0 for dtype in DTYPES}
    for dtype in DTYPES:
        for tokens, inputs, outputs in SHAPES:
            x, weight = torch.randn(tokens, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
            until = time.perf_counter() + RATE_SECONDS / len(SHAPES)
            while (start := time.perf_counter()) < until:
                torch.nn.functional.linear(x, weight)
                seconds = time.perf_counter() - start
                best[str(dtype)] = max(best[str(dtype)], 2 * tokens * inputs * outputs / seconds)
    return best


if __name__ == "__main__":
    main()
