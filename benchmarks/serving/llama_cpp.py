"""Resident memory and tokens a second in llama.cpp on a CPU: a model in its own types, and files beside them.

    python -m benchmarks.serving.llama_cpp MODEL.gguf [RUN/exports/gguf/model.gguf ...] [--types BF16 Q4_K_M Q2_K]

The model is quantized to each type by llama.cpp itself, without an importance matrix. Then a process for each file, in
which an `adapter.gguf` beside it is loaded too. Resident memory is beyond the process before it loads the file, at its
highest after a token; the pages of the mapped file are part of it. Speed is by the clock and a ratio to the first type:
take a quiet machine, `load` is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import MIB, RESULTS, append_lines, find_commit, find_cpu_name
from benchmarks.serving.transformers import PROMPT


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--types", nargs="+", default=["BF16", "Q4_K_M", "Q4_1", "Q2_K"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "serving" / "llama_cpp.jsonl")
    parser.add_argument("--here", action="store_true", help="measure the model as it is, in this process")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.model, options.threads, options.tokens, options.repeats)))
        return
    machine = {"cpu": find_cpu_name(), "load": os.getloadavg()[0], "commit": find_commit()}
    first: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as holder:
        made = [Path(holder) / f"{options.model.stem}-{name}.gguf" for name in options.types]
        for name, file in zip(options.types, made, strict=True):
            quantize(options.model, file, name)
        for file in (*made, *options.files):
            command = [sys.executable, "-m", "benchmarks.serving.llama_cpp", file, "--here"]
            command += ["--threads", options.threads, "--tokens", options.tokens]
            command += ["--repeats", options.repeats]
            done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            first = first or row
            row["ratio_to_first"] = round(row["tokens_a_second"] / first["tokens_a_second"], 3)
            append_lines(options.out, row | machine)
            print(json.dumps(row), flush=True)


def quantize(
    source: Path,
    target: Path,
    mix: str,
    importance: dict[str, Any] | None = None,
    types: dict[str, str] | None = None,
) -> None:
    """Write a file in one of llama.cpp's own mixes, such as `Q4_K_M`; its messages go to standard error.

    Args:
        importance: mean squared inputs, tensors (in,), by the names of tensors.
        types: by the names of tensors, in place of the mix's own.
    """
    from gguf import GGMLQuantizationType, LlamaFileType
    from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

    ffi, lib = get_ffi(), get_lib()
    lib.llama_backend_init()
    settings = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    settings.ftype = LlamaFileType[f"MOSTLY_{mix}"]
    settings.allow_requantize = True
    kept = []  # what C code holds a pointer to

    def keep(made: Any) -> Any:
        kept.append(made)
        return made

    if importance:
        table = keep(ffi.new("struct llama_model_imatrix_data[]", len(importance) + 1))
        for entry, (name, values) in zip(table, importance.items(), strict=False):
            entry.name, entry.size = keep(ffi.new("char[]", name.encode())), len(values)
            entry.data = keep(ffi.new("float[]", values.tolist()))
        settings.imatrix = table
    if types:
        table = keep(ffi.new("struct llama_model_tensor_override[]", len(types) + 1))
        for entry, (name, kind) in zip(table, types.items(), strict=False):
            entry.pattern = keep(ffi.new("char[]", f"^{name}$".replace(".", r"\.").encode()))
            entry.type = GGMLQuantizationType[kind]
        settings.tt_overrides = table
    if lib.llama_model_quantize(str(source).encode(), str(target).encode(), settings):
        raise RuntimeError(f"llama.cpp does not quantize {source} to {mix}")


def measure(file: Path, threads: int, tokens: int, repeats: int) -> dict[str, Any]:
    from importlib.metadata import version

    from qra_backends.ggml.library import PACKAGE

    from qra_eval.export.llama_cpp import generate

    beside = file.with_name("adapter.gguf")
    adapter = beside if beside.is_file() else None
    answers = [generate(file, adapter, PROMPT, tokens=tokens, threads=threads) for _ in range(repeats)]
    rates = sorted(answer.tokens_per_second for answer in answers)
    return {
        "file": file.name,
        "file_mib": round((file.stat().st_size + (adapter.stat().st_size if adapter else 0)) / MIB, 1),
        "threads": threads,
        "tokens": answers[0].tokens,
        "tokens_a_second": round(rates[len(rates) // 2], 2),
        "resident_beyond_mib": round(answers[0].resident_bytes / MIB, 1),
        PACKAGE: version(PACKAGE),
    }


if __name__ == "__main__":
    main()
