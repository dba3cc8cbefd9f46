"""Resident memory and tokens a second in llama.cpp, of exported plans side by side, as ratios to the first.

    python benchmarks/exports/llama_cpp_speed.py NAME=RUN ... --out benchmarks/results/llama_cpp_speed.jsonl

RUN is the folder of a tuned run on backend gguf; the model is measured without its adapter, which is as large in all.
Rounds take the runs in turn, each in a process of its own with one thread, and seconds are the processor's that it had,
so that what else the machine does falls on all alike: a ratio is taken within a round, and the median over rounds is
given. Memory is what the process holds more once
the model is loaded (read, not mapped) and has answered. Needs llama-cpp-py-sync.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT, WRITTEN = 256, 48
"""Tokens that are read at once, and that are written one by one."""
READ = 0
"""LLAMA_LOAD_MODE_NONE: the file is read, and not mapped."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="the first is what the others are compared with")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/llama_cpp_speed.jsonl"))
    given = parser.parse_args()
    files = {name: model_file(Path(run)) for name, _, run in (text.partition("=") for text in given.runs)}
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in files}
    for round_ in range(given.rounds):
        turn = list(files)[:: 1 if round_ % 2 == 0 else -1]
        for name in turn:
            done = subprocess.run(
                [sys.executable, __file__, "measure", str(files[name])], check=True, capture_output=True, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            measured[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, measured[name][-1], flush=True)
    first = next(iter(files))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("w") as out:
        for name, rows in measured.items():
            ratios = {
                f"{key}_ratio": round(
                    statistics.median(a[key] / b[key] for a, b in zip(rows, measured[first], strict=True)), 3
                )
                for key in ("resident_bytes", "prompt_tokens_a_second", "written_tokens_a_second")
            }
            row: dict[str, Any] = {"name": name, "beside": first, "file_bytes": files[name].stat().st_size}
            row |= {"resident_bytes": round(statistics.median(r["resident_bytes"] for r in rows)), **ratios}
            out.write(json.dumps({**row, "rounds": given.rounds}) + "\n")


def model_file(run: Path) -> Path:
    """The run's model as GGUF, written if it is not there."""
    from qra_eval.export.gguf import GGUFExporter
    from qra_eval.export.tuned import TunedRun

    file = run / "speed.gguf"
    if not file.is_file():
        GGUFExporter().write_model(TunedRun(run), file)
    return file


def measure(file: str) -> None:
    """Prints what one process measures: without torch, whose own memory would hide the model's."""
    from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

    ffi, lib = get_ffi(), get_lib()
    quiet = ffi.callback("void(enum ggml_log_level, const char *, void *)", lambda level, text, data: None)
    lib.llama_log_set(quiet, ffi.NULL)
    lib.llama_backend_init()
    before = resident()
    settings = lib.llama_model_default_params()
    settings.n_gpu_layers, settings.load_mode = 0, READ
    model = lib.llama_model_load_from_file(file.encode(), settings)
    more = lib.llama_context_default_params()
    more.n_ctx, more.n_batch, more.n_ubatch, more.n_threads, more.n_threads_batch = 512, PROMPT, PROMPT, 1, 1
    context = lib.llama_init_from_model(model, more)
    if ffi.NULL in (model, context):
        raise RuntimeError(f"llama.cpp does not load {file}")
    batch = lib.llama_batch_init(PROMPT, 0, 1)

    def decode(tokens: list[int], start: int) -> float:
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, start + place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, place == len(tokens) - 1
        begun = time.process_time()
        if lib.llama_decode(context, batch):
            raise RuntimeError("llama.cpp does not decode")
        return time.process_time() - begun

    reading = decode([20 + i % 200 for i in range(PROMPT)], 0)
    writing = sum(decode([20 + i], PROMPT + i) for i in range(WRITTEN))
    found = {
        "resident_bytes": resident() - before,
        "prompt_tokens_a_second": PROMPT / reading,
        "written_tokens_a_second": WRITTEN / writing,
    }
    print(json.dumps(found))


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2])
    else:
        main()
