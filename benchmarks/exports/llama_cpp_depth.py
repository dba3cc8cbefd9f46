"""What is left of llama.cpp's differences when its rounding of inputs is done in torch too, layer after layer.

    python benchmarks/exports/llama_cpp_depth.py RUN --data DIR

RUN is one that `llama_cpp_levels.py` has tuned and exported. The model is cut to its first layers, embeddings in
float32, and computed without the adapter: by llama.cpp, in float32, and with inputs rounded in torch as llama.cpp's
kernels do (`emulated`). Then once more emulated, from embeddings moved by a millionth of themselves: what two
computations differ by that round alike, but not in the same last digit. Needs llama-cpp-py-sync.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from llama_cpp_levels import TABLES, difference, float32_weight, logits, run_model, texts
from llama_cpp_py_sync import __llama_cpp_tag__
from llama_cpp_rounding import recast, rounded_inputs
from torch import Tensor

from qra_eval.export import llama_cpp
from qra_eval.export.gguf_files import MODEL_FILE
from qra_eval.export.tuned import TunedRun

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 30)
MOVED = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--positions", type=int, default=1000)
    parser.add_argument("--depths", type=int, nargs="*", default=DEPTHS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/llama_cpp_depth.jsonl"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    run = TunedRun(given.run)
    prompts = texts(run, given.data, given.positions)
    model = run_model(run, float32_weight(run))
    decoder = model.get_base_model().model
    for depth in given.depths:
        decoder.config.num_hidden_layers = depth  # it runs so many of its layers
        with model.disable_adapter():
            row = {"model": Path(run.spec).name, "llama.cpp": __llama_cpp_tag__, "layers": depth}
            row |= compared(run, model, given.run / "exports" / "gguf" / MODEL_FILE, prompts, depth)
        print(json.dumps(row), flush=True)
        with given.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def compared(run: TunedRun, model: Any, file: Path, prompts: list[list[int]], depth: int) -> dict[str, Any]:
    """Mean differences of logits, and the share of what rounding changes that the emulation leaves."""
    with tempfile.TemporaryDirectory() as holder:
        cut = Path(holder) / MODEL_FILE
        recast(file, cut, lambda name: name in TABLES, layers=depth)
        theirs = torch.cat(llama_cpp.logits(cut, None, prompts))
    in_float32 = logits(model, prompts)
    with rounded_inputs(model, run, adapter=False, table=False):
        emulated, moved = logits(model, prompts), moved_logits(model, prompts)
    rounding, left = difference(in_float32, theirs), difference(emulated, theirs)
    echo = difference(emulated, moved)
    name = "mean_logit_difference"
    return {
        "engine / float32": rounding,
        "engine / emulated": left,
        "emulated / emulated from moved embeddings": echo,
        "left": round(left[name] / rounding[name], 4),
        "left_between_emulations": round(echo[name] / rounding[name], 4),
    }


def moved_logits(model: Any, prompts: list[list[int]]) -> Tensor:
    """Of the model with embeddings that differ in the sixth digit."""
    generator = torch.Generator().manual_seed(0)

    def move(module: Any, args: Any, out: Tensor) -> Tensor:
        return out * (1 + MOVED * torch.randn(out.shape, generator=generator))

    handle = model.get_input_embeddings().register_forward_hook(move)
    try:
        return logits(model, prompts)
    finally:
        handle.remove()


if __name__ == "__main__":
    main()
