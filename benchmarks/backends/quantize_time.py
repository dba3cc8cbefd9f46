"""How long the calibrated quantizer takes on SmolLM2's first layers, beside an earlier commit: time, and equal codes.

python benchmarks/backends/quantize_time.py --against 6ce246d

Three ways take turns in processes of their own: the earlier commit, which quantizes all linears at one level after the
other; this checkout in the same order, with a backend for each level; and this checkout with `quantize_levels`. Ratios
are of CPU seconds, which a busy machine changes least.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from qra_backends import SecondMoment, make_backend
from torch import Tensor, nn

BITS = (2, 3, 4, 8)
WAYS = ("before", "alone", "together")
Example = dict[str, tuple[Tensor, str]]
"""Weight of each linear, and the name of the linear whose Hessian it shares."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", default="6ce246d", help="the earlier commit")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quantize_time.jsonl"))
    parser.add_argument("--worker", nargs=3, metavar=("WAY", "EXAMPLE", "RESULT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.worker:
        work(*options.worker)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = subprocess.run(["git", "archive", options.against, "backends"], capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(folder / "before", filter="data")
        torch.save(example(options.layers), folder / "example.pt")
        seconds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way in WAYS:
                seconds[way].append(run(way, folder, options.threads))
        codes = {way: torch.load(folder / f"{way}.pt") for way in WAYS}
    row = {"commit": revision("HEAD"), "against": options.against, "torch": torch.__version__, **summary(seconds)}
    row |= {"layers": options.layers, "rounds": options.rounds, "threads": options.threads}
    row["equal_codes"] = {way: equal(codes["before"], codes[way]) for way in WAYS[1:]}
    print(json.dumps(row))
    with options.out.open("a") as file:
        file.write(json.dumps(row) + "\n")


def example(layers: int) -> tuple[Example, dict[str, Tensor]]:
    """Linears of SmolLM2's first layers, and Hessians of what they read when the model reads this project's pages."""
    from qra_eval.models.load import load_model

    loaded = load_model("smollm2", dtype=torch.float32)
    model: Any = loaded.model
    model.model.layers = model.model.layers[:layers]
    text = "\n".join(page.read_text() for page in sorted(Path("docs").glob("*.md")))
    rows = loaded.tokenizer(text, return_tensors="pt").input_ids[0][:8192].view(-1, 512)
    moments: dict[str, SecondMoment] = {}
    linears: Example = {}
    last: list[Any] = [None, ""]

    def read(name: str, linear: nn.Linear, x: Tensor) -> None:
        if last[0] is not x:
            last[:] = [x, name]
            moments.setdefault(name, SecondMoment()).update(x)
        linears[name] = (linear.weight.detach().bfloat16(), last[1])

    for name, module in model.model.layers.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda linear, args, name=name: read(name, linear, args[0]))
    with torch.no_grad():
        for batch in rows.split(4):
            model.model(batch, use_cache=False)
    return linears, {name: moment.hessian() for name, moment in moments.items()}


def run(way: str, folder: Path, threads: int) -> dict[str, float]:
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
    if way == "before":
        environment["PYTHONPATH"] = str(folder / "before" / "backends")
    files = [str(folder / "example.pt"), str(folder / f"{way}.pt")]
    command = [sys.executable, __file__, "--threads", str(threads), "--worker", way, *files]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def work(way: str, example: str, result: str) -> None:
    """Quantize the example in one way, print the seconds, and write the tensors."""
    weights, hessians = torch.load(example)
    linears = {name: (as_linear(weight), hessians[owner]) for name, (weight, owner) in weights.items()}
    warm = as_linear(torch.randn(64, 64, dtype=torch.bfloat16))
    for backend in backends("together").values():  # libraries are imported
        backend.quantize(warm, 8)
    made = backends(way)
    modules: dict[tuple[str, int], nn.Module] = {}
    cpu, wall = time.process_time(), time.perf_counter()
    if way == "together":
        for name, (linear, hessian) in linears.items():
            levels = made[BITS[0]].quantize_levels(linear, BITS, hessian=hessian)
            modules |= {(name, bits): module for bits, module in levels.items()}
    else:
        for bits in BITS:
            for name, (linear, hessian) in linears.items():
                modules[name, bits] = made[bits].quantize(linear, bits, hessian=hessian)
    print(json.dumps({"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}))
    torch.save({key: made[key[1]].to_tensors(module) for key, module in modules.items()}, result)


def backends(way: str) -> dict[int, Any]:
    """The backend for each level: one for all, or one each as when equal parts were not shared."""
    shared = make_backend("mixed-calibrated")
    return {bits: shared if way == "together" else make_backend("mixed-calibrated") for bits in BITS}


def as_linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    linear.weight.data.copy_(weight)
    return linear


def equal(first: dict[tuple[str, int], dict[str, Tensor]], second: dict[tuple[str, int], dict[str, Tensor]]) -> float:
    """Share of stored bytes that are the same: at least one code of an unequal byte of codes differs."""
    pairs = [
        (tensor.view(torch.uint8).flatten(), second[key][name].view(torch.uint8).flatten())
        for key, tensors in first.items()
        for name, tensor in tensors.items()
    ]
    return sum(int((a == b).sum()) for a, b in pairs) / sum(len(a) for a, _ in pairs)


def summary(seconds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    medians = {
        clock: {way: statistics.median(round_[clock] for round_ in seconds[way]) for way in WAYS}
        for clock in ("cpu", "wall")
    }
    ratios = {
        f"{clock}_over_before": {way: round(found[way] / found["before"], 3) for way in WAYS[1:]}
        for clock, found in medians.items()
    }
    return {**ratios, "cpu_seconds": {way: round(value, 2) for way, value in medians["cpu"].items()}}


def revision(name: str) -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", name], capture_output=True, text=True, check=False
    ).stdout.strip()


if __name__ == "__main__":
    main()
