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

import numpy as np
import torch
from llama_cpp_py_sync import __llama_cpp_tag__
from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

CASES: tuple[tuple[dict[str, Any], bool], ...] = (
    ({}, True),
    ({}, False),
    ({"weights": "f16", "merge": True}, False),
    ({"weights": "bf16", "merge": True}, False),
)
"""Options of the export, and whether its adapter is loaded as well."""
PLACES = 512


def main() -> None:
    from qra_eval.export import export
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
            theirs = logits(out / "model.gguf", adapter, [ids[0].tolist() for ids in run.input_ids])
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


def logits(model: Path, adapter: Path | None, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Logits (tokens, vocabulary) of every prompt, by llama.cpp."""
    ffi, lib = get_ffi(), get_lib()
    lib.llama_backend_init()
    loaded = lib.llama_model_load_from_file(str(model).encode(), lib.llama_model_default_params())
    if loaded == ffi.NULL:
        raise RuntimeError(f"llama.cpp does not load {model}")
    vocabulary = lib.llama_n_vocab(lib.llama_model_get_vocab(loaded))
    settings = lib.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = PLACES
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = 0  # GGML_TYPE_F32
    found = []
    for prompt in prompts:
        context = lib.llama_init_from_model(loaded, settings)
        if adapter is not None:
            lora = lib.llama_adapter_lora_init(loaded, str(adapter).encode())
            if lora == ffi.NULL:
                raise RuntimeError(f"llama.cpp does not load {adapter}")
            scale = ffi.new("float[]", [1.0])
            if lib.llama_set_adapters_lora(context, ffi.new("struct llama_adapter_lora *[]", [lora]), 1, scale):
                raise RuntimeError(f"llama.cpp does not take {adapter}")
        batch = lib.llama_batch_init(len(prompt), 0, 1)
        batch.n_tokens = len(prompt)
        for place, token in enumerate(prompt):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = 1
        if lib.llama_decode(context, batch):
            raise RuntimeError("llama.cpp does not decode the prompt")
        size = len(prompt) * vocabulary * 4
        raw = np.frombuffer(ffi.buffer(lib.llama_get_logits(context), size), dtype=np.float32).copy()
        found.append(torch.from_numpy(raw).view(len(prompt), vocabulary))
        lib.llama_batch_free(batch)
        lib.llama_free(context)
    lib.llama_model_free(loaded)
    return found


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
