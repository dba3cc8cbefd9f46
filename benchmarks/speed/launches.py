"""What a decoder layer launches on a GPU in training, by level, counted on a pretended one; no GPU is needed.

    TRITON_INTERPRET=1 python -m benchmarks.speed.launches

A pass forward and backward of a layer of Llama with adapters, gradients of an earlier micro-batch being there; and the
bytes that making a weight reads and writes, for each of its numbers. Beside our kernels the plain way, which is taken
where Triton has no compiler, and the layer with its scales in training.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, append_lines, find_commit

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from benchmarks.speed.launch_counter import HIDDEN, counted_layer, dequantizing, levels, module_of


def main() -> None:
    found: dict[str, dict[str, Any]] = {}
    for way, kernels in (("kernel", True), ("plain", False)):
        with counted_layer(kernels=kernels) as count:
            for name, backend, bits in levels():
                row = found.setdefault(name, {"level": name, "commit": find_commit()})
                made = dequantizing(module_of(backend, bits))
                row |= {f"{way}_layer": count(backend, bits).count, f"{way}_weight": made.count}
                row |= {f"{way}_bytes": round(made.bytes / HIDDEN**2, 2)}
                if kernels:
                    row["kernel_layer_scales"] = count(backend, bits, scales=True).count
    columns = ("kernel_layer", "kernel_weight", "kernel_bytes", "plain_layer", "plain_weight", "plain_bytes")
    print(f"{'level':22}", *(f"{column:>14}" for column in columns))
    for row in found.values():
        print(f"{row['level']:22}", *(f"{row[column]:>14}" for column in columns))
    append_lines(RESULTS / "launches.jsonl", *found.values())


if __name__ == "__main__":
    main()
