"""Relative output error of layers in GGML types on rows not calibrated on: our codes beside llama.cpp's own.

    python benchmarks/backends/gguf_layers.py --data DIR --out benchmarks/results/gguf_layers.jsonl

Same type, same bytes; both see the same calibration rows, llama.cpp's quantizer as its importance matrix. The error is
the mean square of the change of a linear's output over that of the output. SmolLM2 comes as a Q4_1 file, which Q4_1 and
Q4_K hold nearly as it is: they are left out. Needs llama-cpp-py-sync.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from qra_backends import SecondMoment, make_backend
from torch import Tensor, nn

from qra_eval.models.load import load_model

TYPES = ("Q2_K", "IQ3_XXS", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q5_0", "Q8_0")
LAYERS = (2, 8, 14)
LINEARS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--calibration", type=int, default=48, help="rows that are calibrated on")
    parser.add_argument("--held-out", type=int, default=16, help="rows on which the error is measured")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gguf_layers.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model("smollm2")
    model: Any = loaded.model
    model.model.layers = model.model.layers[: max(LAYERS) + 1]
    names = [f"model.layers.{layer}.{linear}" for layer in LAYERS for linear in LINEARS]
    lines = (options.data / "gsm8k_train.jsonl").read_text().splitlines()[: options.calibration + options.held_out]
    texts = [f"{row['question']} {row['answer']}" for row in map(json.loads, lines)]
    seen, unseen = (
        hessians(model, loaded.tokenizer, names, part)
        for part in (texts[: options.calibration], texts[options.calibration :])
    )
    rows = []
    for name in names:
        linear: nn.Linear = model.get_submodule(name)
        for kind in TYPES:
            errors = {}
            for codes, feedback in (("llama.cpp", False), ("feedback", True)):
                backend = make_backend({"name": "gguf", "types": kind, "feedback": feedback})
                if backend.supports(kind, linear.out_features, linear.in_features) is None:
                    module = backend.quantize(linear, kind, hessian=seen[name])
                    errors[codes] = error(backend.dequantize(module), linear.weight.detach(), unseen[name])
            if errors:
                rows.append({"linear": name, "type": kind, **{k: float(f"{v:.3g}") for k, v in errors.items()}})
                print(json.dumps(rows[-1]), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


@torch.no_grad()
def hessians(model: Any, tokenizer: Any, names: list[str], texts: list[str]) -> dict[str, Tensor]:
    """The mean of x xᵀ over the inputs of linears."""
    moments = {name: SecondMoment() for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, m=moment: m.update(args[0]))
        for name, moment in moments.items()
    ]
    for text in texts:
        model.model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: moment.hessian() for name, moment in moments.items()}


def error(weight: Tensor, whole: Tensor, hessian: Tensor) -> float:
    change, whole = weight.float() - whole.float(), whole.float()
    return float(((change @ hessian) * change).sum() / ((whole @ hessian) * whole).sum())


if __name__ == "__main__":
    main()
