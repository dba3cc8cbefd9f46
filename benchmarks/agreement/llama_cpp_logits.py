"""Loads the GGUF export of a tuned run in llama.cpp itself, and prints by how much its logits differ.

    python -m benchmarks.agreement.llama_cpp_logits RUN

It is compared, with and without its adapter, with the model as it is, and with the same model computed in float32:
bfloat16's own rounding is as large as what llama.cpp rounds otherwise. Needs the package llama-cpp-py-sync, which
brings a built llama.cpp (CPU). RUN is the folder of a run tuned for llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from llama_cpp_py_sync import __llama_cpp_tag__

from benchmarks.agreement.logits import difference
from benchmarks.common import RESULTS, append
from qra_eval.export import export, llama_cpp
from qra_eval.export.tuned import TunedRun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "llama_cpp.jsonl")
    given = parser.parse_args()
    run = TunedRun(given.run)
    rows = []
    with tempfile.TemporaryDirectory() as holder:
        out = Path(holder) / "gguf"
        export(run, "gguf", out)
        prompts = [ids[0].tolist() for ids in run.input_ids]
        for tuned in (True, False):
            theirs = torch.cat(llama_cpp.logits(out / "model.gguf", out / "adapter.gguf" if tuned else None, prompts))
            mine = flat(run.live_logits if tuned else run.logits(run.with_weights(run.weight, adapter=False)))
            precise = flat(run.logits(run.with_weights(run.weight, adapter=tuned).float()))
            rows.append(
                {
                    "llama.cpp": __llama_cpp_tag__,
                    "backend": run.plan["backend"]["name"],
                    "compared": "tuned model" if tuned else "base without adapter",
                    "adapter.gguf": tuned,
                    **difference(mine, theirs),
                    "in_float32": difference(precise, theirs),
                    "float32_against_stored": difference(mine, precise),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    given.out.unlink(missing_ok=True)
    append(given.out, *rows)


def flat(logits: list[torch.Tensor]) -> torch.Tensor:
    """(positions, vocabulary), of all prompts after one another."""
    return torch.cat([some.flatten(0, 1) for some in logits])


if __name__ == "__main__":
    main()
