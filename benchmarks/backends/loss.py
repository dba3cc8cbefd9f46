"""What each backend leaves of a model at each bit-width: untuned loss, output error, bytes, and time.

    python benchmarks/backends/loss.py --data DIR [--model smollm2] [--backend hqq reference-gptq ...] [--bits 2 3 4]

DIR holds gsm8k_train.jsonl, whose first rows calibrate, and gsm8k_test.jsonl, whose first rows are held out. One JSON
object a line: `loss` is the mean over answer tokens with every searched linear at `bits`; `output_error` the geometric
mean over linears of ||X(W - Ŵ)ᵀ||² / ||XWᵀ||² on held-out inputs; `cpu_seconds` what quantizing the whole model took,
summed over `threads` threads; `forward_ratio` the time of forward and backward of one layer against the unquantized one.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from qra_backends import SecondMoment, make_backend
from torch import Tensor, nn
from torch.nn import functional as F

from qra_eval.linears import find_linears
from qra_eval.models import load_model

BACKENDS = ("hqq", "bitsandbytes", "reference", "reference-gptq")
TOKENS = 1024  # of the timed forward and backward
REPEATS = 7

Rows = list[tuple[list[int], list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with gsm8k_train.jsonl and gsm8k_test.jsonl")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--backend", nargs="+", default=list(BACKENDS), help="names, or JSON objects with options")
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 3, 4, 8])
    parser.add_argument("--calibration", type=int, default=24, help="rows that calibrate")
    parser.add_argument("--held-out", type=int, default=32, help="rows that measure")
    for line in measure(parser.parse_args()):
        print(json.dumps(line), flush=True)


@torch.no_grad()
def measure(options: argparse.Namespace) -> Iterator[dict]:
    loaded = load_model(options.model, dtype=torch.bfloat16)
    model, linears = loaded.model, {found.name: found.module for found in find_linears(loaded.model)}
    train = read(options.data / "gsm8k_train.jsonl", options.calibration, loaded.tokenizer)
    test = read(options.data / "gsm8k_test.jsonl", options.held_out, loaded.tokenizer)
    calibration, held_out = (moments(model, linears, rows) for rows in (train, test))
    yield {"backend": None, "bits": 16, "loss": round(loss(model, test), 4), "model": options.model}
    for spec in options.backend:
        backend = make_backend(json.loads(spec) if spec.startswith("{") else spec)
        for bits in [b for b in options.bits if b in backend.bits]:
            modules, errors, cpu_seconds = {}, [], 0.0
            for name, linear in linears.items():
                started = time.process_time()
                modules[name] = backend.quantize(linear, bits, hessian=calibration[name])
                cpu_seconds += time.process_time() - started
                errors.append(output_error(backend.dequantize(modules[name]), linear.weight, held_out[name]))
            swap(model, modules)
            found = loss(model, test)
            swap(model, linears)
            name = max(linears, key=lambda n: linears[n].weight.numel())
            sizes = [(backend.storage(bits).bytes(*x.weight.shape), x.weight.numel()) for x in linears.values()]
            yield {
                "backend": spec,
                "bits": bits,
                "loss": round(found, 4),
                "output_error": float(f"{math.exp(statistics.fmean(map(math.log, errors))):.4g}"),
                "bits_per_weight": round(8 * sum(b for b, _ in sizes) / sum(n for _, n in sizes), 4),
                "cpu_seconds": round(cpu_seconds, 1),
                "forward_ratio": round(timed(modules[name]) / timed(linears[name]), 2),
                "threads": torch.get_num_threads(),
                "calibration_rows": options.calibration if backend.calibrated else 0,
            }


def read(path: Path, count: int, tokenizer) -> Rows:
    """Tokens of question and answer of the first rows."""
    rows = [json.loads(line) for line in path.read_text().splitlines()[:count]]
    return [
        (
            tokenizer(f"Question: {row['question']}\nAnswer:").input_ids,
            [*tokenizer(f" {row['answer']}").input_ids, tokenizer.eos_token_id],
        )
        for row in rows
    ]


def moments(model: nn.Module, linears: dict[str, nn.Linear], rows: Rows) -> dict[str, Tensor]:
    """Second moments of every linear's inputs; linears that read the same tensor share one."""
    gathered: dict[str, SecondMoment] = {}
    owner: dict[str, str] = {}
    seen: dict[int, str] = {}
    alive: list[Tensor] = []  # an id is unique only while its tensor lives

    def gather(name: str, x: Tensor) -> None:
        first = seen.setdefault(id(x), name)
        owner[name] = first
        alive.append(x)
        if first == name:
            gathered.setdefault(name, SecondMoment()).update(x)

    handles = [
        linear.register_forward_pre_hook(lambda _, inputs, name=name: gather(name, inputs[0]))
        for name, linear in linears.items()
    ]
    for question, answer in rows:
        seen.clear()
        alive.clear()
        model(torch.tensor([question + answer]), use_cache=False)
    for handle in handles:
        handle.remove()
    hessians = {name: moment.hessian() for name, moment in gathered.items()}
    return {name: hessians[owner[name]] for name in linears}


def loss(model: nn.Module, rows: Rows) -> float:
    """Mean cross-entropy of the answers' tokens."""
    total = count = 0
    for question, answer in rows:
        logits = model(torch.tensor([question + answer]), use_cache=False).logits[0, len(question) - 1 : -1]
        total += F.cross_entropy(logits.float(), torch.tensor(answer), reduction="sum").item()
        count += len(answer)
    return total / count


def output_error(restored: Tensor, weight: Tensor, hessian: Tensor) -> float:
    weight, off = weight.float(), restored.float() - weight.float()
    return (((off @ hessian) * off).sum() / ((weight @ hessian) * weight).sum()).item()


def swap(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    for name, module in modules.items():
        setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], module)


def timed(module: nn.Module) -> float:
    """Median seconds of a forward and backward to the input."""
    x = torch.randn(TOKENS, module.in_features, dtype=torch.bfloat16, requires_grad=True)
    times = []
    for _ in range(REPEATS + 1):
        with torch.enable_grad():
            started = time.perf_counter()
            module(x).sum().backward()
            times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
