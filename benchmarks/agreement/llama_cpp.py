"""Loads GGUF exports of a tuned run in llama.cpp itself, and prints by how much its logits differ.

    python benchmarks/exports/llama_cpp.py RUN --out benchmarks/results/llama_cpp.jsonl

Each export is compared with the model as it is, and with the same model computed in float32: bfloat16's own rounding
is as large as what llama.cpp rounds otherwise. Needs the package llama-cpp-py-sync, which brings a built llama.cpp
(CPU). RUN is the folder of a tuned run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from llama_cpp_py_sync import __llama_cpp_tag__

CASES: tuple[tuple[dict[str, Any], bool], ...] = (
    ({}, True),
    ({}, False),
    ({"weights": "f16", "merge": True}, False),
    ({"weights": "bf16", "merge": True}, False),
)
"""Options of the export, and whether its adapter is loaded as well."""


def main() -> None:
    from qra_eval.export import export, llama_cpp
    from qra_eval.export.tuned import TunedRun

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/llama_cpp.jsonl"))
    given = parser.parse_args()
    run = TunedRun(given.run)
    rows = []
    with tempfile.TemporaryDirectory() as holder:
        for options, with_adapter in CASES:
            out = Path(holder) / f"gguf-{len(rows)}"
            export(run, "gguf", out, **options)
            adapter = out / "adapter.gguf" if with_adapter else None
            theirs = llama_cpp.logits(out / "model.gguf", adapter, [ids[0].tolist() for ids in run.input_ids])
            tuned = with_adapter or bool(options.get("merge"))
            mine = run.live_logits if tuned else run.logits(run.with_weights(run.weight, adapter=False))
            precise = run.logits(run.with_weights(run.weight, adapter=tuned).float())
            rows.append(
                {
                    "llama.cpp": __llama_cpp_tag__,
                    "backend": run.plan["backend"]["name"],
                    "options": options,
                    "compared": "tuned model" if tuned else "base without adapter",
                    "adapter.gguf": with_adapter,
                    **difference(mine, theirs),
                    "in_float32": difference(precise, theirs),
                    "float32_against_stored": difference(mine, [p.flatten(0, 1) for p in precise]),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


def difference(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> dict[str, float]:
    """Figures of both, over all positions."""
    a, b = torch.cat([m.flatten(0, 1) for m in mine]), torch.cat(theirs)
    gap = (a - b[:, : a.shape[1]]).abs()
    same = (a.argmax(-1) == b[:, : a.shape[1]].argmax(-1)).float().mean()
    return {
        "largest_logit_difference": round(float(gap.max()), 4),
        "largest_logit": round(float(a.abs().max()), 2),
        "mean_logit_difference": round(float(gap.mean()), 5),
        "same_next_token": round(float(same), 4),
    }


if __name__ == "__main__":
    main()
