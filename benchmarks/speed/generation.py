"""Tokens a second that a tuned run writes, beside its model in 16 bits, and beside llama.cpp.

    python -m benchmarks.speed.generation RUN --gguf FILE

One thread, greedy, one prompt, the same number of tokens each, in turn. A second is one of the processor's: what runs
beside counts less. `kept` is what `generate` does, `anew` what it did: every weight dequantized for every token.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, append_lines, find_commit, find_cpu_name
from qra_eval import load
from qra_eval.models.load import load_model

PROMPT = "Question: Ines had 695 shells and gave 6 of them to David. How many shells are left?\nAnswer:"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--gguf", type=Path, help="of the same model, for llama.cpp (package llama-cpp-py-sync)"
    )
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "generation.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    plan = json.loads((given.run / "plan.json").read_text())
    dtype = getattr(torch, plan["dtype"])
    model, tokenizer = load(given.run, device="cpu")
    whole = load_model(plan["model"], dtype=dtype, device="cpu").model
    prompt = tokenizer(PROMPT, return_tensors="pt")
    length = {"max_new_tokens": given.tokens, "min_new_tokens": given.tokens, "do_sample": False}
    base = model.get_base_model()

    def kept(written: Any = model) -> int:
        return written.generate(**prompt, **length).shape[1] - prompt["input_ids"].shape[1]  # type: ignore[no-any-return]

    def anew() -> int:
        keeping = vars(base).pop("generate")
        try:
            return kept()
        finally:
            base.generate = keeping

    ways: dict[str, Callable[[], int]] = {"16 bits": lambda: kept(whole), "kept": kept, "anew": anew}
    if given.gguf is not None:
        from llama_cpp_py_sync import Llama

        engine = Llama(str(given.gguf), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
        options = {"max_tokens": given.tokens, "temperature": 0.0, "repeat_penalty": 1.0}
        ways[f"llama.cpp, {given.gguf.name}"] = lambda: len(
            tokenizer(engine.generate(PROMPT, **options))["input_ids"]
        )
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.repeats):
        for name, write in ways.items():
            began = time.process_time()
            count = write()
            rates[name].append(count / (time.process_time() - began))
    for name, found in rates.items():
        row = {
            "way": name,
            "model": plan["model"],
            "dtype": plan["dtype"],
            "memory_bytes": plan["memory_bytes"],
            "tokens": given.tokens,
            "tokens_a_second": round(sorted(found)[len(found) // 2], 2),
            "slowest": round(min(found), 2),
            "fastest": round(max(found), 2),
            "cpu": find_cpu_name(),
            "commit": find_commit(),
        }
        append_lines(given.out, row)
        print(
            f"{name:40} {row['tokens_a_second']:.1f} ({row['slowest']:.1f} to {row['fastest']:.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
