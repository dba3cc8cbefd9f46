"""Resident memory and tokens a second of a tuned run in transformers on a CPU, beside its model in bfloat16.

    python -m benchmarks.serving.transformers RUN/tunings/ID [--threads 1 2] [--tokens 48] [--repeats 3]

A process for each way and number of threads. "Beyond the imports" is beyond a process that has loaded the random tiny
model and generated with it, so that every library is there. A second is one of the processor's while there is one
thread; with several it is of the clock, which a busy machine lengthens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import MIB, RESULTS, append_lines, find_commit, find_cpu_name

PROMPT = "User: is it safe to go to north korea\nIntent:"
WAYS = ("bfloat16", "auto", "codes", "decoded")
"""The unquantized model; and what `load` takes for `weights`."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "serving" / "transformers.jsonl")
    parser.add_argument("--way", choices=WAYS, help="measure this one here, with the first number of threads")
    options = parser.parse_args()
    if options.way is not None:
        print(
            json.dumps(measure(options.run, options.way, options.threads[0], options.tokens, options.repeats))
        )
        return
    machine = {"cpu": find_cpu_name(), "load": os.getloadavg()[0], "commit": find_commit()}
    for threads in options.threads:
        rates = {}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.serving.transformers", options.run, "--way", way]
            command += ["--threads", str(threads), "--tokens", str(options.tokens)]
            command += ["--repeats", str(options.repeats)]
            done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            rates[way] = row["tokens_a_second"]
            row["ratio_to_bfloat16"] = round(rates[way] / rates["bfloat16"], 3)
            append_lines(options.out, row | machine)
            print(json.dumps(row), flush=True)


def measure(run: Path, way: str, threads: int, tokens: int, repeats: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    from qra_backends import make_backend

    from qra_eval import load
    from qra_eval.models.load import load_model

    clock = time.process_time if threads == 1 else time.perf_counter
    tiny = load_model("tiny")
    generate(tiny.model, tiny.tokenizer, 3)
    linear = torch.nn.Linear(32, 32, bias=False).bfloat16()
    with torch.no_grad():
        make_backend("trellis").quantize(linear, 2, hessian=torch.eye(32))(torch.zeros(1, 32).bfloat16())
    imports = read_status("VmRSS")
    plan = json.loads((run / "plan.json").read_text())
    if way == "bfloat16":
        loaded = load_model(plan["model"], dtype=torch.bfloat16)
        model, tokenizer = loaded.model, loaded.tokenizer
    else:
        model, tokenizer = load(run, device="cpu", weights=way)
    generate(model, tokenizer, 3)
    rates = []
    for _ in range(repeats):
        begun = clock()
        generate(model, tokenizer, tokens)
        rates.append(tokens / (clock() - begun))
    return {
        "run": run.name,
        "model": Path(plan["model"]).name,
        "plan_mib": round(plan["memory_bytes"] / MIB, 1),
        "way": way,
        "threads": threads,
        "tokens_a_second": round(sorted(rates)[len(rates) // 2], 2),
        "fastest": round(max(rates), 2),
        "second_of": "processor" if threads == 1 else "clock",
        "imports_mib": round(imports / MIB),
        "resident_beyond_imports_mib": round((read_status("VmRSS") - imports) / MIB),
        "peak_beyond_imports_mib": round((read_status("VmHWM") - imports) / MIB),
        "torch": torch.__version__,
    }


def generate(model: Any, tokenizer: Any, tokens: int) -> None:
    prompt = tokenizer(PROMPT, return_tensors="pt")
    model.generate(**prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


def read_status(field: str) -> int:
    """Bytes that Linux says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
