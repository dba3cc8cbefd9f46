"""How fast packed weights become bfloat16 ones, in bytes read and written a second, beside a copy of these."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from qra_backends import make_backend
from torch import nn

from benchmarks.gpu_parts.common import seconds

SHAPE, SMALL = (14336, 4096), (512, 1024)
REPEATS = 10
LEVELS = (("reference", 2), ("reference", 3), ("reference", 4), ("reference", 8), ("bitsandbytes-nf4", 4))


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    shape = SMALL if options.small else SHAPE
    linear = nn.Linear(shape[1], shape[0], bias=False, dtype=torch.bfloat16, device=options.device)
    weight = linear.weight.detach()
    to = torch.empty_like(weight)
    copy = 2 * weight.nbytes / seconds(lambda: to.copy_(weight), options.device, REPEATS) / 1e9
    yield {"what": "copy", "shape": shape, "gb_per_second": copy}
    for name, bits in LEVELS:
        backend = make_backend(name)
        if reason := backend.unavailable_reason():
            yield {"what": f"{name} {bits}", "skipped": reason}
            continue
        module = backend.quantize(linear.requires_grad_(False), bits)
        moved = weight.nbytes + backend.storage(bits).bytes(*shape)
        speed = moved / seconds(partial(backend.dequantize, module), options.device, REPEATS) / 1e9
        yield {"what": f"{name} {bits}", "shape": shape, "gb_per_second": speed, "of_copy": speed / copy}
