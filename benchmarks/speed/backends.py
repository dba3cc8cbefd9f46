"""How long a training pass takes through each backend's modules on this CPU, as a ratio to the unquantized layer.

python -m benchmarks.speed.backends
"""

from __future__ import annotations

import statistics
import time

import torch
from qra_backends import make_backend
from qra_backends.base import Backend
from torch import nn

from qra_search import plugins

ROWS, PASSES = 256, 7
SHAPE = (1024, 1024)


def slowdown(backend: Backend, bits: int | str) -> float:
    """Time of forward and gradient to the input, of 256 rows in bfloat16, in that of the unquantized layer."""
    linear = nn.Linear(SHAPE[1], SHAPE[0], bias=False, dtype=torch.bfloat16).requires_grad_(False)
    hessian = torch.eye(SHAPE[1]) if backend.calibrated else None
    layers = (linear, backend.quantize(linear, bits, hessian=hessian).train())
    x = torch.randn(ROWS, SHAPE[1], dtype=torch.bfloat16, requires_grad=True)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(PASSES + 1):  # in turn, so that both meet the same load
        for layer, seen in zip(layers, times, strict=True):
            start = time.perf_counter()
            layer(x).sum().backward()
            seen.append(time.perf_counter() - start)
    plain, own = (statistics.median(seen[1:]) for seen in times)
    return own / plain


def main() -> None:
    for name in plugins.list_names("backends"):
        backend = make_backend(name)
        if reason := backend.unavailable_reason():
            print(f"{name}: {reason}")
            continue
        print(f"{name}: " + ", ".join(f"{bits}: {slowdown(backend, bits):.2f}" for bits in backend.bits))


if __name__ == "__main__":
    main()
