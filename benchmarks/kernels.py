"""Compiles every kernel for five GPUs on a machine without one, and says what each takes: registers, spills, memory.

    python -m benchmarks.kernels [--out FILE]

The kernels are those that this package launches for small weights, with the arguments that it gives them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import torch
import triton
from qra_backends.ggml import decode_triton as ggml
from qra_backends.ggml.types import TYPES
from qra_backends.kernels import groupwise as groupwise
from qra_backends.reference import feedback_triton
from qra_backends.trellis import decode_triton, viterbi_triton
from qra_backends.trellis.code import TrellisCode, make_value_table
from triton.backends.compiler import GPUTarget

from benchmarks.common import RESULTS, append_lines, find_commit

TARGETS = {
    **{f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in (80, 90, 100, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
KINDS = ("Q2_K", "Q4_K", "IQ3_XXS", "IQ4_XS")
DTYPES = {
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels.jsonl")
    out = parser.parse_args().out
    started, rows = time.perf_counter(), []
    for name, kernel, args, options in list_launches():
        for target in TARGETS:
            used = compile_kernel(kernel, args, options, target)
            rows.append({"kernel": name, "target": target, **used})
            print(json.dumps(rows[-1]), flush=True)
    versions = {"triton": triton.__version__, "commit": find_commit()}
    out.unlink(missing_ok=True)
    append_lines(out, *({**row, **versions} for row in rows))
    print(f"{len(rows)} in {time.perf_counter() - started:.0f} s")


def list_launches() -> Iterator[tuple[str, Any, tuple[Any, ...], dict[str, Any]]]:
    """Name, kernel, arguments and keywords of each launch; of launches of one form the first."""
    launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    seen: set[str] = set()

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append((self, args, options))

    triton.runtime.jit.JITFunction.run = record
    for name, launch in list_variants():
        launches.clear()
        launch()
        for kernel, args, options in launches:
            form = f"{kernel.__module__} {kernel.__name__} {[*map(name_type, args)]} {options}"
            if form not in seen:
                seen.add(form)
                yield f"{name}: {kernel.__name__}", kernel, args, options


def list_variants() -> Iterator[tuple[str, Callable[[], Any]]]:
    """What launches each kernel, by a name."""
    dtype, half, block = torch.bfloat16, torch.float16, 256
    code, wide = TrellisCode(4, 12), TrellisCode(10, 16)
    codes = torch.zeros(wide.stream_bytes(64), 512, dtype=torch.uint8)
    scale, at = torch.ones(64, dtype=half), torch.arange(8)
    yield "trellis", lambda: decode_triton.decode_rows(codes, scale, 1.0, None, code, block, dtype)
    yield "trellis, rows", lambda: decode_triton.decode_rows(codes, scale, 1.0, at, code, block, dtype)
    for name, of, tokens in (("1 input", code, 1), ("16 inputs", code, 16), ("5 bits, L 16", wide, 1)):
        x = torch.zeros(tokens, 512, dtype=dtype)
        yield f"trellis, {name}", partial(decode_triton.make_product(codes, scale, of, block), x)
    for L in (12, 14):
        yield f"trellis, L {L}", partial(find_paths, TrellisCode(4, L))
    for bits in (3, 4):
        ones = torch.ones(64, 2, dtype=half)
        packed = torch.zeros(64, 16 * bits, dtype=torch.uint8)
        form = (bits, 64, (64, 128), dtype)
        yield f"groups, {bits} bits", partial(groupwise.decode, packed, ones, ones, *form)
    for kind in KINDS:
        blocks = torch.zeros(4, TYPES[kind].bytes(1, 512), dtype=torch.uint8)
        yield f"llama.cpp, {kind}", partial(ggml.decode, blocks, TYPES[kind], dtype)
    grid, groups = torch.ones(2, 64), torch.zeros(64, dtype=torch.int64)
    columns = (torch.zeros(64, 64), torch.eye(64), groups, grid, grid, 3.0)
    yield "error feedback", partial(feedback_triton.round_columns, *columns)


def find_paths(code: TrellisCode) -> None:
    table, rows = make_value_table(code.L, torch.device("cpu")).float(), torch.zeros(256)
    first, free = torch.zeros(1, dtype=torch.int64), torch.full((1,), -1, dtype=torch.int32)
    states = torch.zeros(256, dtype=torch.int32)
    viterbi_triton._find_paths(rows, rows, table, code, first, first + 128, free, free, states)


def compile_kernel(
    kernel: Any, args: tuple[Any, ...], options: dict[str, Any], target: str
) -> dict[str, int]:
    """Registers of a thread, what is spilled of them (bytes by CUDA, registers by HIP), and a program's bytes."""
    given = dict(zip(kernel.arg_names, args, strict=False)) | options
    constants = {p.name: given[p.name] for p in kernel.params if p.is_constexpr}
    signature = {p.name: "constexpr" if p.is_constexpr else name_type(given[p.name]) for p in kernel.params}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    chosen = {name: options[name] for name in OPTIONS if name in options}
    made = triton.compile(source, target=TARGETS[target], options=chosen)
    if target.startswith("gfx"):
        text = made.asm["amdgcn"]
        registers, spilled = (
            find_number(rf"\.{name}:\s+(\d+)", text) for name in ("vgpr_count", "vgpr_spill_count")
        )
    else:
        text = dump_resources(made.asm["cubin"])
        registers, spilled = find_number(r"REG:(\d+)", text), find_number(r"STACK:(\d+)", text)
    return {"registers": registers, "spilled": spilled, "shared_bytes": made.metadata.shared}


def name_type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{DTYPES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


def dump_resources(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def find_number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {pattern} in {text[-2000:]}")
    return int(found[1])


if __name__ == "__main__":
    main()
