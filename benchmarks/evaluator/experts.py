"""Times a layer of experts computed in batches beside the loop that calls each: forward and backward, side by side.

A random layer of Qwen3-MoE's shape, cut down, whose adapters train. Machines are shared and noisy: both ways are timed
in turn, and the ratio of the medians is what counts.

    python benchmarks/evaluator/experts.py --out benchmarks/results/experts.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from qra_backends import make_backend
from torch import nn

from qra_eval.models.experts import Experts
from qra_eval.quantized import adapters

BASES = ("plain", "frozen", "packed")
BITS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--intermediate", type=int, default=192)
    parser.add_argument("--chosen", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=4 * 128)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for dtype in options.dtypes:
        for base in BASES:
            row = measure(base, getattr(torch, dtype), options)
            print(json.dumps(row), flush=True)
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def measure(base: str, dtype: torch.dtype, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both ways, and how far their outputs and gradients by the input are apart."""
    layer = make_layer(base, dtype, options)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(options.tokens, options.hidden, generator=generator).to(dtype).to(options.device)
    ways = {"batched": True, "loop": False}
    seconds: dict[str, list[float]] = {f"{way} {part}": [] for way in ways for part in ("forward", "both")}
    results: dict[str, list[torch.Tensor]] = {}
    for repeat in range(options.repeats + 1):
        # As in training, no two passes choose alike: products of a number of rows not met before may cost more.
        logits = torch.randn(options.tokens, options.experts, generator=generator)
        weights, chosen = logits.softmax(1).topk(options.chosen)
        weights, chosen = weights.to(dtype).to(options.device), chosen.to(options.device)
        for way, layer.batched in ways.items():
            x = hidden.clone().requires_grad_()
            layer.zero_grad()
            start = now(options.device)
            out = layer(x, chosen, weights)
            middle = now(options.device)
            out.float().square().sum().backward()
            end = now(options.device)
            results[way] = [out.detach(), x.grad]
            if repeat:  # the first warms up
                seconds[f"{way} forward"].append(middle - start)
                seconds[f"{way} both"].append(end - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    apart = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results.values(), strict=True)]
    return {
        "base": base,
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else options.device,
        **{k: getattr(options, k) for k in ("experts", "hidden", "intermediate", "chosen", "tokens", "threads")},
        "rank": options.rank if base != "plain" else 0,
        "repeats": options.repeats,
        **{f"{name} seconds": round(value, 5) for name, value in medians.items()},
        "speedup forward": round(medians["loop forward"] / medians["batched forward"], 2),
        "speedup": round(medians["loop both"] / medians["batched both"], 2),
        "largest relative difference": max(apart),
        "torch": torch.__version__,
    }


def make_layer(base: str, dtype: torch.dtype, options: argparse.Namespace) -> Experts:
    """Experts with random weights: plain linears, or dequantized or packed weights under adapters."""
    generator = torch.Generator().manual_seed(0)
    stacked = nn.Module()
    gate_up = torch.randn(options.experts, 2 * options.intermediate, options.hidden, generator=generator)
    down = torch.randn(options.experts, options.hidden, options.intermediate, generator=generator)
    stacked.gate_up_proj = nn.Parameter((gate_up / options.hidden**0.5).to(dtype))
    stacked.down_proj = nn.Parameter((down / options.intermediate**0.5).to(dtype))
    stacked.act_fn = nn.SiLU()
    layer = Experts(stacked).to(options.device).requires_grad_(False).train()
    if base == "plain":
        return layer
    backend = make_backend("reference")
    names = [name for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
    for name, wrapper in adapters.install(layer, names).items():
        module = backend.quantize(wrapper.linear, BITS)
        if base == "packed":
            wrapper.set_base(module=module)
        else:
            wrapper.set_base(weight=backend.dequantize(module).to(dtype))
        A, B = adapters.first_factors(0, wrapper, name, options.rank)
        B = torch.randn(B.shape, generator=generator) * 0.01
        wrapper.set_adapter(A.to(options.device), B.to(options.device), scaling=2.0)
    return layer


def now(device: str) -> float:
    """Seconds, once all that was started is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
