"""How long trellis codes take beside the default before (`today`): quantizing SmolLM2's first layers, and decoding.

    python -m benchmarks.speed.trellis_time --data DIR

Both quantize the same linears with the same Hessians, in turn, on one thread. Ratios are of the processor's seconds,
which a busy machine changes least. Compiling is not in them; `compile_seconds` is what it takes once a machine, then
what its cache takes in each process. The whole model has ten times as many linears as three layers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from qra_backends import SecondMoment, make_backend
from qra_backends.trellis.code import VALUE_UNIT
from qra_backends.trellis.linear import decode_rows
from torch import Tensor, nn

from benchmarks.common import RESULTS, append_lines, find_commit, find_cpu_name
from qra_eval.models.load import load_model

BITS = (2, 3, 4, 8)
BEFORE: dict[int, str] = {
    2: "reference-gptq",
    3: "reference-gptq",
    4: "reference-gptq",
    8: "bitsandbytes-int8",
}
WARM = """
import time, torch
from qra_backends import make_backend
import numba
backend, linear = make_backend({"name": "trellis", "L": 10}), torch.nn.Linear(16, 16, bias=False)
start = time.process_time()
backend.dequantize(backend.quantize(linear, 2, hessian=torch.eye(16)))
print(time.process_time() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of gsm8k_train.jsonl")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "trellis_time.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    linears = example(options.data, options.layers)
    weights = sum(linear.weight.numel() for linear, _ in linears.values())
    backends = {"today": make_backend(BEFORE), "trellis": make_backend("mixed-calibrated")}
    single = make_backend("trellis")
    for backend in backends.values():  # libraries are imported, functions compiled
        backend.quantize_levels(nn.Linear(64, 64, bias=False).bfloat16(), BITS, hessian=torch.eye(64))
    whole: dict[str, list[float]] = {name: [] for name in backends}
    levels: dict[int, list[float]] = {bits: [] for bits in single.bits}
    for _ in range(options.rounds):
        for name, backend in backends.items():
            whole[name].append(cpu_seconds(lambda backend=backend: quantize(backend, BITS, linears)))
        for bits in single.bits:
            levels[bits].append(cpu_seconds(lambda bits=bits: quantize(single, (bits,), linears)))
    seconds = {name: statistics.median(times) for name, times in whole.items()}
    row = {
        "commit": find_commit(),
        "cpu": find_cpu_name(),
        "weights": weights,
        "levels": list(BITS),
        "cpu_seconds": {name: round(value, 2) for name, value in seconds.items()},
        "trellis_over_today": round(seconds["trellis"] / seconds["today"], 2),
        "us_a_weight": {
            bits: round(1e6 * statistics.median(times) / weights, 3) for bits, times in levels.items()
        },
        "decode_ns_a_weight": decoding(linears),
        "compile_seconds": compile_seconds(),
    }
    print(json.dumps(row))
    append_lines(options.out, row)


def example(data: Path, layers: int) -> dict[str, tuple[nn.Linear, Tensor]]:
    """Linears of SmolLM2's first layers in bfloat16, and the Hessians of their inputs, shared where inputs are."""
    loaded = load_model("smollm2")
    model: Any = loaded.model
    model.model.layers = model.model.layers[:layers]
    lines = (data / "gsm8k_train.jsonl").read_text().splitlines()[:16]
    moments: dict[str, SecondMoment] = {}
    owners: dict[str, str] = {}
    last: list[Any] = [None, ""]

    def read(name: str, x: Tensor) -> None:
        if last[0] is not x:
            last[:] = [x, name]
        owners[name] = last[1]
        if owners[name] == name:
            moments.setdefault(name, SecondMoment()).update(x)

    linears = {name: part for name, part in model.model.layers.named_modules() if isinstance(part, nn.Linear)}
    for name, linear in linears.items():
        linear.register_forward_pre_hook(lambda _, args, name=name: read(name, args[0]))
    with torch.no_grad():
        for line in lines:
            text = json.loads(line)["question"]
            model.model(input_ids=loaded.tokenizer(text, return_tensors="pt")["input_ids"], use_cache=False)
    hessians = {name: moment.compute_hessian() for name, moment in moments.items()}
    return {name: (linear.bfloat16(), hessians[owners[name]]) for name, linear in linears.items()}


def quantize(backend: Any, levels: tuple[int, ...], linears: dict[str, tuple[nn.Linear, Tensor]]) -> None:
    for linear, hessian in linears.values():
        backend.quantize_levels(linear, levels, hessian=hessian)


def cpu_seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def decoding(linears: dict[str, tuple[nn.Linear, Tensor]]) -> dict[str, float]:
    """Nanoseconds of the processor for each weight of the widest linear: 2 bits of either backend, to bfloat16."""
    linear, hessian = max(linears.values(), key=lambda pair: pair[0].weight.numel())
    today, backend = make_backend("reference-gptq"), make_backend("trellis")
    packed = today.quantize(linear, 2, hessian=hessian)
    module: Any = backend.quantize(linear, 2, hessian=hessian)
    factor = module.scales().float() * VALUE_UNIT
    rows = torch.arange(linear.out_features)
    ways: dict[str, Callable[[], Tensor]] = {
        "packed codes": lambda: today.dequantize(packed),
        "trellis, numba": lambda: backend.dequantize(module),
        "trellis, torch": lambda: decode_rows(
            module.codes, factor, rows, module.code, module.block, torch.bfloat16
        ),
    }
    found = {}
    for name, way in ways.items():
        way()
        best = min(cpu_seconds(lambda way=way: [way() for _ in range(5)]) for _ in range(5))
        found[name] = round(1e9 * best / 5 / linear.weight.numel(), 2)
    return found


def compile_seconds() -> dict[str, float]:
    """Processor seconds of a process that codes next to nothing, with an empty cache and then with a full one."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        times = [
            float(
                subprocess.run(
                    [sys.executable, "-c", WARM], env=environment, capture_output=True, check=True
                ).stdout
            )
            for _ in range(2)
        ]
    return {"empty cache": round(times[0], 2), "full cache": round(times[1], 2)}


if __name__ == "__main__":
    main()
