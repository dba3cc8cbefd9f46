"""What the parts of `gpu.py` share: a name for the card, time and peaks of memory, and evaluators on random models."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import PeakWatch, find_cpu_name
from benchmarks.memory.random_models import SHAPES, write_model, write_rows
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator


def device_name(device: str) -> str:
    """The card, or the processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return find_cpu_name()


def synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: str, repeats: int) -> float:
    """The quickest of some repeats, after one that warms up."""
    best = float("inf")
    for repeat in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        if repeat:
            best = min(best, time.perf_counter() - start)
    return best


@contextmanager
def measured(device: str) -> Iterator[dict[str, Any]]:
    """Fills a dict with what the body took: seconds, peaks of the device (of tensors, of the allocator, and in all with
    the driver's), and of the host's pages that belong to no file; all in bytes, those of the device None on a CPU."""
    cuda = torch.device(device).type == "cuda"
    found: dict[str, Any] = {"allocated": None, "reserved": None, "in_use_at_end": None}
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    with PeakWatch() as watch:
        yield found
        synchronize(device)
    found |= {"seconds": time.perf_counter() - start, "host": watch.peak_bytes}
    if cuda:
        free, total = torch.cuda.mem_get_info(device)
        found |= {"allocated": torch.cuda.max_memory_allocated(device)}
        found |= {"reserved": torch.cuda.max_memory_reserved(device), "in_use_at_end": total - free}


def random_model(options: argparse.Namespace, size: str) -> str:
    """The folder of a random model of a size, made if it is missing; a tiny one under `--small`."""
    size = "tiny" if options.small else size
    device = "cpu" if options.pretended else options.device  # it has no generator
    return str(write_model(SHAPES[size], options.folder / size, device=device))


def make(
    options: argparse.Namespace,
    model: str,
    backend: str,
    sections: Mapping[str, Any],
    *,
    bits: tuple[int, ...] = (2, 3, 4, 8),
    ranks: tuple[int, ...] = (4, 8, 16, 32),
    embeddings: Any = 16,
    dequantized_cache: str = "0",
    weights: bool = True,
) -> QuantizedLoRAEvaluator:
    """An evaluator on made-up rows, its quantized weights in the folder of the benchmark.

    Args:
        sections: of the config: `training`, `evaluation` and `finetune`, as far as they are not the defaults.
    """
    bank = options.folder / f"bank-{Path(model).name}-{backend}-{'-'.join(map(str, bits))}"
    config = {
        "model": {"name": model, "device": options.device, "dequantized_cache": dequantized_cache},
        "task": {"name": "jsonl", "data": str(write_rows(options.folder / "rows"))},
        "quantization": {"backend": backend, "embeddings": embeddings, "cache": str(bank)},
        "space": {"bits": bits, "ranks": ranks},
        **sections,
    }
    return QuantizedLoRAEvaluator(config, weights=weights)
