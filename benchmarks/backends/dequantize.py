"""How long it takes to dequantize a packed weight, beside the earlier way that looked codes up in a table.

python benchmarks/backends/dequantize.py [--device cuda]

Both ways take turns in one process; a ratio above 1 is so many times faster. Unequal weights end it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from qra_backends import make_backend
from qra_backends.reference.packed import GROUP_DTYPE, PackedLinear, decode
from torch import Tensor, nn
from torch.nn import functional as F

SHAPES = ((192, 576), (576, 576), (1536, 576), (576, 1536), (2048, 4096))
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dequantize.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backend, ratios = make_backend("reference"), {}
    for shape in SHAPES:
        linear = nn.Linear(shape[1], shape[0], bias=False, device=options.device)
        for bits in backend.bits:
            layer = backend.quantize(linear, bits)
            for name, dtype in DTYPES.items():
                key = f"{shape[0]}x{shape[1]}, {bits} bits, {name}"
                ratios[key] = round(speedup(layer, dtype, options.rounds), 2)
                print(key, ratios[key], flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    row = {"commit": commit.stdout.strip(), "torch": torch.__version__, "device": options.device}
    row |= {"threads": options.threads, "rounds": options.rounds, "before_over_now": ratios}
    with options.out.open("a") as file:
        file.write(json.dumps(row) + "\n")


def speedup(layer: PackedLinear, dtype: torch.dtype, rounds: int) -> float:
    """Median over rounds of the earlier way's time in units of the present one's."""
    if not torch.equal(by_table(layer, dtype), layer.dequantize(dtype)):
        raise SystemExit(f"the weights differ: {layer}, {dtype}")
    found = []
    for _ in range(rounds):
        before = seconds(lambda: by_table(layer, dtype), layer.codes.device)
        found.append(before / seconds(lambda: layer.dequantize(dtype), layer.codes.device))
    return statistics.median(found)


def seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(3):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def by_table(layer: PackedLinear, dtype: torch.dtype) -> Tensor:
    """The earlier way: all codes by a table, then all weights in float32, then in `dtype`."""
    shape = layer.out_features, layer.in_features
    codes = unpack(layer.codes, layer.bits, shape[0] * shape[1]).view(shape)
    return decode(codes, layer.scale.view(GROUP_DTYPE), layer.offset.view(GROUP_DTYPE), layer.group_size).to(dtype)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    if bits == 8:
        return packed[:count]
    if bits == 3:
        triples = F.pad(packed, (0, -len(packed) % 3)).view(-1, 3).to(torch.int32)
        low, middle, high = triples.unbind(1)
        index = torch.stack([low | ((middle & 0xF) << 8), (middle >> 4) | (high << 4)], dim=1).view(-1)
    else:
        index = packed.to(torch.int32)
    return table(bits, packed.device).index_select(0, index).view(torch.uint8)[:count]


@lru_cache(maxsize=16)
def table(bits: int, device: torch.device) -> Tensor:
    """The codes in every pattern of bits, a row's bytes seen as one integer."""
    values = {2: 4, 3: 4, 4: 2}[bits]
    patterns = torch.arange(1 << (bits * values), dtype=torch.int32)
    codes = torch.stack([(patterns >> (bits * i)) & ((1 << bits) - 1) for i in range(values)], dim=1)
    return codes.to(torch.uint8).view({4: torch.int32, 2: torch.int16}[values]).reshape(-1).to(device)


if __name__ == "__main__":
    main()
